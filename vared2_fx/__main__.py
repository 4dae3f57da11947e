"""`python -m vared2_fx`: the same as `vared2`."""

from vared2_fx.cli import main

if __name__ == "__main__":
    main()
