. "${BASH_SOURCE[0]%.py}"     # made by docs/install/make.py
