"""Fields that ask for a form of the answer: OpenAI's ``response_format``, and vLLM's new and old names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from deployments.protocol.body import Body
from deployments.protocol.compatibility import STRUCTURED_OUTPUTS, ForeignFields
from deployments.protocol.errors import invalid_value
from entmtp.errors import EntMTPError
from entmtp.structured import Structured

Source = Annotated[str, Field(max_length=1_000_000)]


class JsonSchema(Body):
    """A JSON schema as OpenAI's clients send it."""

    name: Annotated[str, Field(max_length=256)] | None = Field(None, description="taken and ignored")
    description: Source | None = Field(None, description="taken and ignored")
    strict: bool | None = Field(None, description="taken and ignored: an answer always fits its schema")
    schema_: Any = Field(None, alias="schema", description="the schema")  # pydantic's models have a method of that name


class ResponseFormat(Body):
    """OpenAI's form of an answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = Field(None, description="of type json_schema")


class StructuredOutputs(Body):
    """vLLM's form of an answer; at most one field asks for any."""

    foreign: ClassVar[ForeignFields] = STRUCTURED_OUTPUTS

    json_: Any = Field(None, alias="json", description="a JSON schema")
    json_object: bool | None = Field(None, description="any JSON object")
    regex: Source | None = Field(None, description="regular expression that the whole answer matches")
    choice: list[Any] | None = Field(None, description="texts of which the answer is one")
    grammar: Source | None = Field(None, description="context-free grammar in Lark's syntax, or GBNF")


class StructuredFields(Body):
    """The fields that ask for a form of the answer."""

    response_format: ResponseFormat | None = Field(None, description="text, any JSON object, or JSON by a schema")
    structured_outputs: StructuredOutputs | None = Field(None, description="vLLM's form of the answer")
    guided_json: Any = Field(None, description="vLLM's old name of structured_outputs.json")
    guided_regex: Source | None = Field(None, description="vLLM's old name of structured_outputs.regex")
    guided_choice: list[Any] | None = Field(None, description="vLLM's old name of structured_outputs.choice")
    guided_grammar: Source | None = Field(None, description="vLLM's old name of structured_outputs.grammar")

    @property
    def format_field(self) -> str:
        """Name of ``response_format`` in errors."""
        return "response_format"

    @property
    def schema_field(self) -> str:
        """Name of its JSON schema in errors."""
        return "response_format.json_schema.schema"

    def requested_structure(self) -> Structured | None:
        """The form that the answer must have; None if its text is free.

        Raises:
            ApiError: it is malformed, or several fields ask for one.
        """
        requested = list(self._requested())
        if not requested:
            return None
        field, given = requested[0]
        if len(requested) > 1:
            other = requested[1][0]
            raise invalid_value(f"{other}: {field} asks for a form of the answer too; give one of them", other)
        try:
            return Structured(**given, field_name=field)
        except EntMTPError as error:
            raise invalid_value(str(error), field) from error

    def _requested(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Fields that ask for a form, each with the argument of :class:`Structured`."""
        if (format_ := self.response_format) is not None:
            if format_.type == "json_object":
                yield self.format_field, {"json_object": True}
            elif format_.type == "json_schema":
                yield self.schema_field, {"json": self._schema(format_)}
        if (outputs := self.structured_outputs) is not None:
            for name in ("json", "json_object", "regex", "choice", "grammar"):
                value = getattr(outputs, "json_" if name == "json" else name)
                if value is not None and value is not False:
                    yield f"structured_outputs.{name}", {name: value}
        for name in ("json", "regex", "choice", "grammar"):
            if (value := getattr(self, f"guided_{name}")) is not None:
                yield f"guided_{name}", {name: value}

    def _schema(self, requested: ResponseFormat) -> Any:
        if requested.json_schema is None or requested.json_schema.schema_ is None:
            field = self.schema_field
            raise invalid_value(f"{field}: this field is missing; give it, or ask for type json_object", field)
        return requested.json_schema.schema_
