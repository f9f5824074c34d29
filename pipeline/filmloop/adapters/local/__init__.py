"""The default site: one machine plays both the edge and the cluster, with the guarantees of the real ones."""
