"""One rewrite or query per file, GraphModule → GraphModule; `pipeline` is the ordered list."""
