complete -c runwait4.py -w runwait4     # made by docs/install/make.py
