"""The training losses equal the reference's: noising, dropout, network input, target, weights, rendering loss."""

import pytest

from tests.golden.train_loss import check_file


@pytest.mark.parametrize("part", ["train_loss_sd", "train_loss_sd3"])
def test_loss(golden, assert_close, part):
    check_file(golden(part), part == "train_loss_sd3", assert_close)
