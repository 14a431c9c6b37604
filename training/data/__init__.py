"""Training data: records, the procedural generator, view picking and samples.

The flow, one module per arrow::

    synthetic object --render--> RawViews --pack--> PackedViews --record--> bytes on disk
                                     |                   |
                                     +------ unpack -----+--> sample (camera chain, maps) --> Sample --> Batch
"""
