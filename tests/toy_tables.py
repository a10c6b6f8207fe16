"""A latency table of a toy model, its units made up."""

from __future__ import annotations

from toy_vits import toy_arch

from edgevit.measure.table import LatencyTable, TableDevice

ARCH = toy_arch(depth=4)
ON = TableDevice("openvino", {"openvino": "2026.4"}, "cpu", {"cpu": "a CPU"}, 2, "fp32", 1)
UNIT_MS = {
    "stem": 0.5,
    "head": 0.1,
    "part": 0.02,
    "copied": 3.0,
    "block": 0.01,
    "elements": 4.0,
    "qk projection": 7.0,
    "vo projection": 8.0,
    "qk product": 5.0,
    "vo product": 6.0,
    "qk registers": 3.0,
    "vo registers": 2.0,
    "projection tiles": 1.5,
    "mlp tiles": 1.2,
    "mlp of many tokens": 30.0,
    "softmax": 40.0,
    "mlp": 9.0,
    "neurons": 20.0,
    "weights": 2.0,
    "sizes": 0.03,
    "sized logits": 10.0,
    "merge": 0.1,
    "matching": 30.0,
    "pooling": 11.0,
    "gathering": 12.0,
}
TABLE = LatencyTable(ON, 0.0, (), UNIT_MS)
