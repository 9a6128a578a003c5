import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """Small tensors: threads only cost time, and their sums depend on how many there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
