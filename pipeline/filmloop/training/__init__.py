"""What runs on the cluster: from shards and a job to a result bundle. No Globus, no MLflow.

`torchrun --standalone --nproc-per-node=P -m filmloop.training.entry job.json`
"""
