"""Pretraining: image shards come in, checkpoints of backbones come out."""
