"""Training data: records, view picking and samples; `procedural` makes objects.

The flow, one module per arrow::

    synthetic object --render--> RawViews --pack--> PackedViews --record--> bytes on disk
                                     |                   |
                                     +------ unpack -----+--> sample (camera chain, maps) --> Sample --> Batch
"""
