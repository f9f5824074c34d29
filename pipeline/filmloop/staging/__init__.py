"""The shard format: the only place that knows Zarr.

A shard is sealed once, by renaming a finished group and then its manifest, and never changes afterwards.
Looking at shards (`layout`, `catalog`, `recovery`, `retention`) needs no Zarr; their frames (`writer`, `reader`,
`verify`) do.
"""
