"""Objectives: summed losses and token weights over a batch."""
