"""Draft trees as data: topologies, batches of them, rank traces, predictors and tree banks."""
