"""Measurements that anybody can repeat: each function returns plain values, which ``cifarnet bench`` prints."""

from cifarnet.bench.saving import format_saving, measure_saving

__all__ = ["format_saving", "measure_saving"]
