"""One dataset with everything wrong with it, and every fault told once; and the shipped presets, with nothing wrong."""

import json
import shutil
import zlib
from collections import Counter

import numpy as np
import pytest
import toml
from PIL import Image, ImageOps
from workplace import PROJECT, make_workplace, write_base_model

from spyke_kohya.audit.catalogue import CATALOGUE
from spyke_kohya.audit.examine import AuditTools, examine
from spyke_kohya.dataset.picture_cache import PictureCache
from spyke_kohya.presets.loading import load

GIB = 2**30
TOOLS = AuditTools(
    look=lambda paths: PictureCache(None).look(paths, lambda count: lambda done: None),
    memory_bytes=16 * GIB,
)


def picture(seed, size=(128, 128)):
    blocks = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize(size, Image.Resampling.BICUBIC)


class Folder:
    """A folder of images that is filled with one fault after the other."""

    def __init__(self, path, trigger):
        self.path, self.trigger, self.count = path, trigger, 0
        path.mkdir(parents=True)

    def add(self, name, image=None, text=None, **how):
        self.count += 1
        (image or picture(zlib.crc32(str(self.path / name).encode()))).save(self.path / name, **how)
        told = f"{self.trigger}, number {self.count}" if text is None else text
        caption = (self.path / name).with_suffix(".txt")
        if told != "none":
            caption.write_bytes(told if isinstance(told, bytes) else told.encode())


def fill_with_image_faults(folder):
    exif = Image.Exif()
    exif[0x0112] = 8
    clear = picture(1)
    clear.putalpha(Image.linear_gradient("L").resize(clear.size))
    black = Image.composite(clear, Image.new("RGBA", clear.size, (0, 0, 0, 0)), clear.getchannel("A"))
    folder.add("sound.png", picture(2))
    folder.add("cut.png")
    data = (folder.path / "cut.png").read_bytes()
    (folder.path / "cut.png").write_bytes(data[:-50])
    folder.add("small.png", picture(3, (64, 64)))
    folder.add("long.png", picture(4, (1200, 130)))
    folder.add("turned.jpg", exif=exif)
    folder.add("clear.png", black)
    folder.add("deep.png", Image.fromarray(np.arange(128 * 128).reshape(128, 128).astype(np.uint16) * 4))
    folder.add("inks.jpg", picture(5).convert("CMYK"))
    folder.add("moving.png", picture(6), save_all=True, append_images=[picture(7)])
    folder.add("stale.png")
    (folder.path / "stale_0300x0200_sd.npz").touch()
    folder.add("twin.png", picture(8))
    folder.add("twin.jpg", picture(9))
    shutil.copy(folder.path / "sound.png", folder.path / "again.png")
    (folder.path / "again.txt").write_text(f"{folder.trigger}, again")
    folder.add("resaved.jpg", picture(2, (160, 160)), quality=92)
    folder.add("mirrored.png", ImageOps.mirror(picture(4, (128, 128))))
    folder.add("unmirrored.png", picture(4, (128, 128)))
    (folder.path / "unseen.gif").touch()
    (folder.path / "below").mkdir()
    picture(10).save(folder.path / "below/deeper.png")


def fill_with_caption_faults(folder):
    folder.add("c0.png", text=b"")
    folder.add("c1.png", text=b"\xff\xfe")
    folder.add("c2.png", text="none")
    folder.add("c3.png", text=f"\n{folder.trigger}, second line")
    folder.add("c4.png", text=f"{folder.trigger}, one\n{folder.trigger}, two")
    folder.add("c5.png", text=b"\xef\xbb\xbf" + folder.trigger.encode())
    folder.add("c6.png", text=f"{folder.trigger}, " + "word " * 90)
    folder.add("c7.png", text=f"somebody, {folder.trigger}")


def words(text):
    return text.split()


IMAGE_FAULTS = words("""images.broken images.upscaled images.cropped images.exif-rotated images.transparent
images.sixteen-bit
images.colours images.animated images.stale-latents images.same-stem images.duplicate images.near-duplicate
images.mirrored images.not-taken images.in-two-roles images.alike-in-two-roles dataset.deeper-images""")
CAPTION_FAULTS = words("""captions.empty captions.not-utf8 captions.missing captions.blank captions.more-lines
captions.byte-order-mark captions.too-long captions.trigger-missing captions.trigger-moves captions.tag-everywhere
captions.trigger-in-regularisation captions.extension""")
FOLDER_FAULTS = words("""repeats.stated-twice dataset.parent-folder dataset.missing-folder dataset.subset-dropped
dataset.reg-unused plan.unexpected-steps output.disk""")
SPLIT_FAULTS = words("""dataset.validation-unseeded dataset.reg-overshoot repeats.prefix-ignored images.unreadable
dataset.cache-latents target.validation""")
OPTION_FAULTS = words("""target.mixed-precision target.full-precision target.optimizer-8bit target.xformers target.fp8
target.deepspeed target.workers-not-persistent target.attention target.torch-compile target.lowram
target.samples-reseed target.cpu-offload-checkpointing target.scale-weight-norms target.dropout-checkpointing
options.learning-rate options.alpha-above-dim options.warmup-refused options.saves-too-rarely plan.steps-ignored
base.pickle output.overwrites""")


@pytest.fixture
def broken(tmp_path):
    """Three presets over one broken dataset: its images and captions, a split of them, and options that can't be."""
    place = make_workplace(tmp_path)
    images = Folder(tmp_path / "dataset/5_images", "spyke")
    fill_with_image_faults(images)
    fill_with_caption_faults(Folder(tmp_path / "dataset/1_captions", "spyke"))
    common = Folder(tmp_path / "dataset/1_common", "spyke")
    for index in range(3):
        common.add(f"{index}.png", text=f"spyke, solo, number {index}")
    other = Folder(tmp_path / "dataset/1_other", "spyke")
    other.add("x.png", text="none")
    (other.path / "x.caption").write_text("spyke, elsewhere")
    reg = Folder(tmp_path / "dataset/1_reg", "creature")
    shutil.copy(images.path / "sound.png", reg.path / "same.png")
    (reg.path / "same.txt").write_text("spyke, creature")
    reg.add("alike.png", picture(9, (140, 140)))
    for index in range(60):
        reg.add(f"r{index:02}.png")
    Folder(tmp_path / "dataset/parent/1_child", "spyke").add("x.png")
    write_presets(place)
    return place


def write_presets(place):
    def subset(name, **more):
        return {"image_dir": f"dataset/{name}", "num_repeats": 1} | more

    def write(name, *subsets, **more):
        dataset = {"resolution": 128, "min_bucket_reso": 64, "enable_bucket": True, "subsets": list(subsets), **more}
        document = {"general": {"caption_extension": ".txt"}, "datasets": [dataset]}
        (place.root / f"presets/{name}.toml").write_text(toml.dumps(document))

    captions = subset("1_captions", shuffle_caption=True)
    train = [subset(name) for name in ("5_images", "1_common", "1_other", "parent", "nowhere")]
    write("data", *train, captions, captions, subset("1_reg", is_reg=True))
    place.change("tiny", train_network={"network_dim": 50_000_000})
    (place.root / "dataset/2_none").mkdir()
    (place.root / "dataset/2_none/x.png").write_bytes(b"not a picture")
    (place.root / "dataset/2_none/x.txt").write_text("spyke, nothing")
    prefixed = {"image_dir": "dataset/2_none", "color_aug": True}
    write("split", subset("1_common"), prefixed, subset("1_reg", is_reg=True, num_repeats=5), validation_split=0.5)
    training = toml.loads((place.root / "presets/tiny.toml").read_text())
    training["dataset"] = "presets/split.toml"
    training["launch"]["target"] = "mps"
    training["expect"] = {}
    training["train_network"] |= {"cache_latents": True, "sdpa": True}
    (place.root / "presets/splitting.toml").write_text(toml.dumps(training))
    write("plain", subset("1_common"))
    training["dataset"] = "presets/plain.toml"
    training["train_network"] |= {
        "pretrained_model_name_or_path": "base.ckpt", "mixed_precision": "bf16", "full_fp16": True,
        "optimizer_type": "AdamW8bit", "xformers": True, "fp8_base": True, "deepspeed": True, "sdpa": False,
        "max_data_loader_n_workers": 2, "torch_compile": True, "lowram": True, "sample_prompts": "prompts.txt",
        "cpu_offload_checkpointing": True, "scale_weight_norms": 1.0, "gradient_checkpointing": True,
        "network_dropout": 0.1, "learning_rate": 0.5, "network_alpha": 64, "lr_warmup_steps": 5, "max_train_steps": 9,
        "save_every_n_steps": 1000, "network_dim": 32, "output_name": "options",
    }  # fmt: skip
    (place.root / "base.ckpt").touch()
    (place.root / "output").mkdir()
    (place.root / "output/options.safetensors").touch()
    (place.root / "presets/options.toml").write_text(toml.dumps(training))


def codes(place, name, *settings, tools=TOOLS):
    return [finding.code for finding in examine(load(name, place.root, settings), place.root, tools=tools).findings]


def test_every_fault_of_a_broken_dataset_is_named_once(broken):
    for name, expected in (
        ("tiny", IMAGE_FAULTS + CAPTION_FAULTS + FOLDER_FAULTS),
        ("splitting", [*SPLIT_FAULTS, "captions.tag-everywhere", "dataset.reg-unused"]),
        ("options", [*OPTION_FAULTS, "captions.tag-everywhere"]),
    ):
        found = codes(broken, name)
        assert (sorted(set(expected) - set(found)), sorted(Counter(found) - Counter(expected))) == ([], []), name
    named = {*IMAGE_FAULTS, *CAPTION_FAULTS, *FOLDER_FAULTS, *SPLIT_FAULTS, *OPTION_FAULTS}
    assert named <= set(CATALOGUE)
    assert len(named) == 63


def test_the_command_line_names_them_too(broken, tmp_path):
    done = broken.spyke("validate", "tiny", "splitting", "options", "--json", XDG_CACHE_HOME=str(tmp_path / "cache"))
    told = [finding["code"] for one in json.loads(done.stdout) for finding in one["findings"]]
    assert (done.returncode, done.stderr) == (3, "")
    assert len(told) >= len(IMAGE_FAULTS + CAPTION_FAULTS + FOLDER_FAULTS + SPLIT_FAULTS + OPTION_FAULTS)


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    """The shipped presets, with pictures and a base model as they ask for."""
    tmp_path = tmp_path_factory.mktemp("shipped")
    shutil.copytree(PROJECT / "presets", tmp_path / "presets")
    folders = [("train/1_spyke_plasma_v1", 23, "spyke_plasma_v1"), ("reg/1_anime_character", 100, "girl")]
    for folder, count, first in folders:
        made = Folder(tmp_path / "dataset/spyke" / folder, first)
        for index in range(count):
            made.add(f"{index:03}.jpg", picture(zlib.crc32(folder.encode()) + index, (512, 512)))
    return tmp_path


@pytest.mark.parametrize(("name", "expected"), [("spyke_plasma_v1", ["target.attention"]), ("spyke_plasma_v2", [])])
def test_the_shipped_presets_are_clean(shipped, name, expected):
    """But for the run of record's own attention: its options are what they were."""
    write_base_model(shipped / "base.safetensors")
    setting = "train_network.pretrained_model_name_or_path=base.safetensors"
    examined = examine(load(name, shipped, [setting]), shipped, tools=TOOLS)
    assert [finding.code for finding in examined.findings] == expected
    assert [f.code for f in examine(load("spyke", shipped), shipped, tools=TOOLS).findings] == []


def test_the_demo_is_clean(tmp_path, demo_pictures, tiny_base):
    shutil.copytree(PROJECT / "presets", tmp_path / "presets")
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset/demo").symlink_to(demo_pictures)
    (tmp_path / "models").mkdir()
    (tmp_path / "models/miniature").symlink_to(tiny_base)
    for name in ("demo", "demo_dataset"):
        assert examine(load(name, tmp_path), tmp_path, tools=TOOLS).findings == ()
