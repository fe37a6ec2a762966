"""What an encoder is worth: embeddings, probes, scores with intervals, verdicts and costs."""
