from jaxcircuits.atlas.building import one_device
def engine(devices): return one_device
