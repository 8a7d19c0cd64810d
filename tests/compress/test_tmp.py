import time
def test_x(trained, float_bundle, int8_bundle, pruned, discs):
    from compress.steps import read_record
    for p in (trained.path, float_bundle.path, int8_bundle.path, pruned.path):
        r=read_record(p); print(p.name, r["seconds"], r["result"])
    assert 0
