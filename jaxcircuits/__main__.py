"""`python -m jaxcircuits`: the command `jaxcircuits`."""

if __name__ == "__main__":
    from jaxcircuits.cli import main

    main(prog_name="python -m jaxcircuits")
