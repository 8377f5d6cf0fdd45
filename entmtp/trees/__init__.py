"""Draft trees as data: topologies, batches of topologies, rank traces, predictors and tree banks."""
