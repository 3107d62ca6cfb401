"""From files to batches: folder, shapes or shards -> order -> loader -> crops -> normalise -> feed."""
