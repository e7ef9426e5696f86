"""placeholder"""
def names():
    return []
