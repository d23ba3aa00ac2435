complete -c runmaker4.py -w runmaker4     # made by docs/install/make.py
