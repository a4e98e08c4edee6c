"""Train, judge and use CIFAR-10 classifiers."""
