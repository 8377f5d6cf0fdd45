"""Stream one answer while it is written, then print how it went."""

import sys

from entmtp.loading import open_session
from entmtp.method_spec import MethodSpec
from entmtp.settings import SamplingParams

session = open_session(MethodSpec("entmtp-dynamic"), say=lambda text: print(text, file=sys.stderr))
for text in session.stream("Name three uses of a paper clip.", SamplingParams(temperature=0.0, max_tokens=48)):
    print(text, end="", flush=True)
print(f"\n\n{session.statistics()}")
