"""The moving average and the learning rate over steps equal the reference's."""

from tests.golden.ema_lr import check_learning_rate, check_moving_average


def test_moving_average(golden, assert_close):
    check_moving_average(golden("ema_lr"), assert_close)


def test_learning_rate(golden, assert_close):
    check_learning_rate(golden("ema_lr"), assert_close)
