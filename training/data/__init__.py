"""Training data: records, the procedural generator, view picking and samples.

The flow, one module per arrow::

    synthetic object --render--> RawViews --pack--> PackedViews --record--> bytes on disk
                                     |                   |
                                     +------ unpack -----+--> sample (camera chain, maps) --> Sample --> Batch

A synthetic object is drawn (`scenes`, `synthetic_config`) from named shapes (`solids`) and composites (`objects`),
both made of primitives (`shapes`, `parts`), and described by `captions` and `grammar`.
"""
