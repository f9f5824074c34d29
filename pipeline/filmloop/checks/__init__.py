"""`filmloop site check`: what a site has and lacks, item by item, each with what to do. Nothing is left behind."""
