"""`python -m weights_conversion`: the command `jaxcircuits convert`."""

if __name__ == "__main__":
    from jaxcircuits.cli.networks import convert

    convert(prog_name="python -m weights_conversion")
