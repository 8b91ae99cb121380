"""Images that are read when they are needed."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, TensorDataset, WeightedRandomSampler

from pyro_isingvit import FitConfig, InputError, fit, read, split
from pyro_isingvit.data import FolderImages, Images, Stream, readers
from pyro_isingvit.data.batches import Batches
from pyro_isingvit.data.streams import in_memory, labelled
from tests.conftest import QUICK, pair

CPU = torch.device("cpu")


class Pictures(Dataset):
    """Pairs of PIL images and labels, as a torchvision data set without a transform gives them."""

    classes = ("black", "white")

    def __init__(self, labels=(0, 1, 1, 0), size=4):
        self.targets, self.size = list(labels), size

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, i):
        return Image.new("L", (self.size, self.size), 255 * (self.targets[i] % 2)), self.targets[i]


class Endless(IterableDataset):
    def __iter__(self):
        yield torch.zeros(1, 4, 4), 0


def same(result, other):
    states = [each.posterior.guide.state_dict() for each in (result, other)]
    return all(torch.equal(value, states[1][name]) for name, value in states[0].items())


@pytest.fixture(scope="module")
def config():
    return FitConfig(**QUICK | {"steps": 30, "temperature": 0.01, "batch_size": 12})


@pytest.fixture(scope="module")
def known(config):
    from tests.conftest import striped

    images = striped()
    return images, fit(pair()[1], images, config=config, progress=False)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_set_is_fitted_as_the_same_images_in_memory_are(workers, known, config):
    images, result = known
    dataset = TensorDataset(images.images, images.labels)
    loader = DataLoader(dataset, batch_size=12, shuffle=True, num_workers=workers)
    assert same(result, fit(pair()[1], loader, config=config, progress=False))


def test_the_batch_size_of_a_loader_is_used_and_said(known, config):
    images, result = known
    loader = DataLoader(TensorDataset(images.images, images.labels), batch_size=7)
    other = fit(pair()[1], loader, config=config, progress=False)
    assert other.config["batch_size"] == 7
    assert not same(result, other)


def test_a_fit_of_a_data_set_goes_on_to_the_same_bits(known, config, tmp_path):
    images, result = known
    dataset, told = TensorDataset(images.images, images.labels), []

    def stop(event):
        told.append(event)
        if len(told) == 30:
            raise KeyboardInterrupt

    saving = {"checkpoint": tmp_path, "interval": 0.0}
    with pytest.raises(KeyboardInterrupt):
        fit(pair()[1], dataset, config=config, progress=False, listeners=[stop], **saving)
    assert same(result, fit(pair()[1], dataset, config=config, progress=False, resume=True, **saving))


def test_predictions_of_a_data_set_are_those_of_its_images(known, monkeypatch):
    images, result = known
    whole = result.posterior.predict(images.images, draws=4)
    monkeypatch.setattr("pyro_isingvit.data.streams.AT_ONCE", images.images[:1].nbytes * 7)  # seven at once
    dataset = TensorDataset(images.images, images.labels)
    for given in (dataset, DataLoader(dataset, batch_size=5, shuffle=True), TensorDataset(images.images)):
        found = result.posterior.predict(given, draws=4)
        torch.testing.assert_close(found.probs, whole.probs)
        torch.testing.assert_close(found.upper, whole.upper)


def test_pictures_become_bytes_and_classes_keep_their_names():
    stream = labelled(Pictures())
    assert (stream.names, stream.classes, stream.kind, stream.shape) == (("black", "white"), 2, "classes", (1, 4, 4))
    kept = in_memory(stream)
    assert kept.images.dtype == torch.uint8
    assert kept.images[:, 0, 0, 0].tolist() == [0, 255, 255, 0]
    assert in_memory(stream, 3).images.shape == (3, 1, 4, 4)
    assert stream[torch.tensor([1, 3])].labels.tolist() == [1, 0]


def test_labels_may_be_numbers_or_several():
    images = torch.rand(6, 1, 4, 4)
    numbers = labelled(TensorDataset(images, torch.randn(6, 2)))
    several = labelled(TensorDataset(images, torch.rand(6, 3) > 0.5))
    assert [(each.kind, each.first.labels.shape[1]) for each in (numbers, several)] == [
        ("numbers", 2),
        ("several labels", 3),
    ]


def test_batches_of_several_processes_are_those_of_one():
    images = Images(torch.rand(23, 1, 2, 2), torch.zeros(23), 1)
    whole = Batches(images, 6, 3, CPU)
    parts = [Batches(images, 6, 3, CPU, rank, 2) for rank in range(2)]
    pixels = []
    for _ in range(3):
        one, both = next(whole)[0], torch.cat([next(part)[0] for part in parts])
        assert torch.equal(one, both)
        pixels.append(one)
    assert len(torch.cat(pixels).flatten(1).unique(dim=0)) == 18  # none twice in an epoch of three batches
    again = Batches(images, 6, 3, CPU)
    again.taken = 2
    assert torch.equal(next(again)[0], pixels[2])
    assert torch.equal(next(again)[0], next(whole)[0])
    assert again.taken == 4


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (Endless(), "train: dataset=Endless: needs a length N"),
        (DataLoader(Endless()), "train: dataset=Endless: needs a length N"),
        (Pictures(()), "train: dataset: holds no image"),
        (DataLoader(Pictures(), sampler=WeightedRandomSampler([1.0] * 4, 4)), "sampler=WeightedRandomSampler"),
        (
            DataLoader(Pictures(), batch_sampler=BatchSampler(WeightedRandomSampler([1.0] * 4, 4), 2, False)),
            "sampler=WeightedRandomSampler",
        ),
        (DataLoader(Pictures(), batch_size=None), "batch_size=None: batches are drawn here"),
        (torch.rand(3, 1, 4, 4), "train=Tensor: give Images, a torch Dataset"),
        ([1, 2], "train=list: give Images, a torch Dataset"),
        (TensorDataset(torch.rand(3, 1, 8, 8)), "an item of the data set is tuple"),
        (TensorDataset(torch.rand(20, 1, 4, 4), torch.full((20,), 5)), r"labels\[0\]=5: must lie within \[0, 3\)"),
        (TensorDataset(torch.rand(20, 1, 4, 4) * 300, torch.zeros(20).long()), "rescale them to"),
        (DataLoader(Pictures(), collate_fn=lambda items: items[0][0]), "collate_fn: gave Image"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(given, message, config):
    with pytest.raises(InputError, match=message):
        fit(pair()[1], given, config=config, progress=False)


def test_images_of_two_sizes_are_refused_in_a_worker_too():
    class Mixed(Pictures):
        def __getitem__(self, i):
            return Image.new("L", (4 + i, 4)), 0

    for workers in (0, 1):
        stream = Stream.of(DataLoader(Mixed(), num_workers=workers))
        with pytest.raises(InputError, match=r"^images of the data set of shapes \(1, 4, 4\) and \(1, 4, 5\): resize"):
            in_memory(stream)


@pytest.fixture
def folder(tmp_path):
    generator = np.random.default_rng(0)
    root = tmp_path / "images"
    for name, channels in (("grey", 0), ("red", 3)):
        (root / name).mkdir(parents=True)
        for i in range(12):
            pixels = generator.integers(0, 255, (6, 6, 3) if channels else (6, 6), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


def test_a_large_folder_is_read_when_it_is_needed(folder, monkeypatch):
    kept = read("folder", folder, image_size=8)
    monkeypatch.setattr(readers, "MOST_KEPT", 100)
    stream = read("folder", folder, image_size=8)
    assert (type(kept), type(stream)) == (Images, Stream)
    assert (stream.names, stream.shape, len(stream)) == (kept.names, kept.shape, len(kept))
    assert torch.equal(in_memory(stream).images, kept.images)
    parts, others = split(stream, train=12, test=6, validation=6), split(kept, train=12, test=6, validation=6)
    assert isinstance(parts.train, Stream)
    for part, other in ((in_memory(parts.train), others.train), (parts.test, others.test)):
        assert torch.equal(part.images.flatten(1).sort(0).values, other.images.flatten(1).sort(0).values)
    balanced = split(stream, train=8, test=2, validation=2, balanced=True)
    assert balanced.train.labels.bincount().tolist() == [4, 4]


def test_a_large_folder_is_known_by_its_files(folder):
    before = FolderImages(folder).fingerprint
    assert before == FolderImages(folder).fingerprint
    Image.new("L", (6, 6)).save(folder / "grey" / "0.png")
    assert before != FolderImages(folder).fingerprint


def test_a_large_folder_is_fitted_and_reported_from_the_command_line(folder, isingvit, monkeypatch):
    monkeypatch.setattr(readers, "MOST_KEPT", 100)
    quick = "--steps 20 --batch-size 4 --temperature 0.01 --members 1 --dim 16 --depth 1 --heads 2 --patch-size 3"
    assert isingvit("fit", "--dataset", "folder", "--data-root", folder, "--out", "run", *quick.split())[0] == 0
    assert isingvit("evaluate", "run")[0] == 0
    (folder / "red" / "0.png").unlink()
    code, _, said = isingvit("evaluate", "run")
    assert code == 2
    assert "was fitted on other images" in said
