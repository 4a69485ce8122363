"""`python -m mmriem`: the command `mmriem`."""

from mmriem.cli import main

if __name__ == '__main__':
    main()
