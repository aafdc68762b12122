"""Whatever goes wrong is one line that says what was expected, what came, where, and what to do; exit code 2."""

from __future__ import annotations

import json
import pickle
import subprocess

import pytest
import torch
from tests.cli import user_code
from tests.cli.conftest import DATA, learn, make

from bookkd.book import Book
from bookkd.cli import main
from bookkd.zoo import create_network


def user(name: str) -> str:
    return f"tests.cli.user_code:{name}"


class TestBooks:
    def test_a_missing_book(self, tmp_path, refused):
        for verb in ("inspect", "verify"):
            line = refused(main([verb, str(tmp_path / "none")]))
            assert str(tmp_path / "none") in line
        assert "none" in refused(learn(tmp_path / "none", tmp_path / "run"))

    def test_a_foreign_folder(self, tmp_path, refused):
        (tmp_path / "notes.txt").write_text("hello")
        assert "plan.json" in refused(main(["inspect", str(tmp_path)]))

    def test_an_unfinished_book(self, book, tmp_path, refused):
        next(book.glob("edition-*.json")).unlink()
        assert "bookkd make" in refused(learn(book, tmp_path / "run"))

    @pytest.mark.parametrize("name", ["plan.json", "edition-000001.json"])
    def test_a_newer_version(self, book, tmp_path, refused, name):
        document = json.loads((book / name).read_text())
        (book / name).write_text(json.dumps(document | {"format_version": 99}))
        assert "version" in refused(learn(book, tmp_path / "run"))

    def test_a_flipped_bit_in_a_shard(self, book, tmp_path, refused):
        for shard in book.glob("view-*/*.safetensors"):
            data = bytearray(shard.read_bytes())
            data[len(data) // 2] ^= 1
            shard.write_bytes(data)
        line = refused(learn(book, tmp_path / "run"))
        assert "bookkd verify" in line
        assert "rows-" in line

    def test_a_truncated_shard(self, book, tmp_path, refused):
        for shard in book.glob("view-*/*.safetensors"):
            shard.write_bytes(shard.read_bytes()[:-10])
        assert "rows-" in refused(learn(book, tmp_path / "run"))

    def test_a_flipped_bit_in_a_manifest(self, book, refused):
        edition = next(book.glob("edition-*.json"))
        data = bytearray(edition.read_bytes())
        data[len(data) // 2] ^= 1
        edition.write_bytes(data)
        assert "edition-000001.json" in refused(main(["inspect", str(book)]))


class TestAlignment:
    def test_another_length(self, made, tmp_path, refused):
        assert "data samples is 95" in refused(learn(made, tmp_path / "run", "--data.limit", "95"))

    def test_other_content(self, made, tmp_path, refused):
        line = refused(learn(made, tmp_path / "run", "--data.limit", "null", "--data", user("other_pixels")))
        assert "data" in line

    def test_another_seed_or_transform(self, made, tmp_path, refused):
        views = ["--views", "digits", "--views.n_views", "2"]
        assert "seed: 0 and 7" in refused(learn(made, tmp_path / "run", *views, "--views.seed", "7"))
        assert "transform" in refused(learn(made, tmp_path / "run", "--views", "none", "--views.n_views", "2"))

    def test_more_views_than_the_book_has(self, made, tmp_path, refused):
        line = refused(learn(made, tmp_path / "run", "--views", "digits", "--views.n_views", "3"))
        assert "3 views are asked for, the book has 2" in line

    def test_a_library_that_draws_otherwise(self, weights, tmp_path, refused, monkeypatch):
        views = ["--views", user("jitter")]
        assert make(weights, tmp_path / "b", *views) == 0
        assert learn(tmp_path / "b", tmp_path / "fine", *views, "--views.n_views", "2") == 0
        monkeypatch.setattr(user_code.Jitter, "drift", 2)
        line = refused(learn(tmp_path / "b", tmp_path / "run", *views, "--views.n_views", "2"))
        assert "sample" in line
        assert "view" in line
        assert "torch" in line

    def test_a_transform_with_a_state_of_its_own_makes_no_book(self, weights, tmp_path, refused):
        line = refused(make(weights, tmp_path / "b", "--views", user("stateful")))
        assert "state" in line
        assert not (tmp_path / "b" / "plan.json").exists()

    def test_code_named_by_a_book_is_never_imported(self, weights, tmp_path, refused):
        assert make(weights, tmp_path / "b", "--views", user("jitter")) == 0
        assert "never imported from a book" in refused(learn(tmp_path / "b", tmp_path / "run"))


class TestMaking:
    def test_a_changed_teacher_data_recipe_or_codec(self, made, weights, tmp_path, refused):
        digest = Book(made).content_digest
        other = tmp_path / "other.safetensors"
        from bookkd.zoo import save_weights

        torch.default_generator.manual_seed(1)
        save_weights(create_network("digits-large", n_classes=10), other)
        for more, word in (
            (["--teacher.weights", str(other)], "digest"),
            (["--data.limit", "90"], "n_samples"),
            (["--views.seed", "3"], "seed"),
            (["--views.n_views", "4"], "n_views"),
            (["--codec", "int8"], "codec"),
        ):
            assert word in refused(make(weights, made, *more)), more
        assert Book(made).content_digest == digest

    def test_a_teacher_that_says_nan(self, tmp_path, refused):
        argv = ["make", *DATA, "--teacher", user("SaysNan"), "--batch_size", "32", "--out", str(tmp_path / "b")]
        line = refused(main(argv))
        assert "sample 31" in line
        assert "logits" in line
        assert not list((tmp_path / "b").rglob("*.safetensors"))

    def test_a_teacher_of_another_width(self, tmp_path, refused):
        argv = ["make", *DATA, "--teacher", user("wide"), "--batch_size", "32", "--out", str(tmp_path / "b")]
        assert "[batch, 10], got shape (32, 12)" in refused(main(argv))

    def test_labels_out_of_range(self, tmp_path, refused):
        argv = ["make", "--data", user("shifted_labels"), "--teacher", user("Linear"), "--out", str(tmp_path / "b")]
        line = refused(main(argv))
        assert "between 0 and 9" in line
        assert "sample" in line

    def test_a_teacher_without_weights(self, tmp_path, refused):
        for name in ("digits-large", "torchvision:resnet18"):
            argv = ["make", *DATA, "--teacher", name, "--out", str(tmp_path / "b")]
            assert "--teacher.weights" in refused(main(argv))
        assert "--student.weights" in refused(main(["evaluate", "--student", "digits-small"]))

    def test_a_demo_of_no_students(self, tmp_path, refused):
        assert "`seeds` to be a whole number of at least 1" in refused(
            main(["demo", "--out", str(tmp_path), "--seeds", "0"])
        )

    def test_a_split_that_is_not_there(self, made, tmp_path, refused):
        assert "--validate_on ''" in refused(learn(made, tmp_path / "run", "--validate_on", "valid"))


class TestCodecs:
    def test_a_temperature_that_was_not_promised(self, weights, tmp_path, refused):
        assert make(weights, tmp_path / "b", "--codec", "top_k", "--codec.k", "4", "--codec.temperatures", "[1,2]") == 0
        line = refused(learn(tmp_path / "b", tmp_path / "run", "--method.temperature", "4"))
        assert "temperature 4" in line
        assert "promises 1, 2" in line
        assert learn(tmp_path / "b", tmp_path / "run", "--method.temperature", "2") == 0

    def test_a_loss_that_needs_every_class(self, weights, tmp_path, refused):
        assert make(weights, tmp_path / "b", "--codec", "top_k", "--codec.k", "4", "--codec.temperatures", "[4]") == 0
        line = refused(learn(tmp_path / "b", tmp_path / "run", "--method.preset", "kd-lib"))
        assert "'logits' to be dense for method vanilla-kd" in line
        assert "bookkd make ... --codec dense" in line
        assert not (tmp_path / "run").exists()


class TestNeeds:
    """What a method needs and its book lacks is said before anything starts, with the command that adds it."""

    def test_a_method_of_two_views_and_a_book_of_one(self, weights, tmp_path, refused):
        for views, command in (
            ("digits", "bookkd make ... --views.n_views 2."),
            ("none", "bookkd make ... --views NAME --views.n_views 2."),
        ):
            book = tmp_path / views
            assert make(weights, book, "--views", views, "--views.n_views", "1") == 0
            line = refused(learn(book, tmp_path / "run", "--method", "mlkd"))
            assert line.endswith(
                f"Expected `n_views` to be at least 2 for method mlkd, got 1 ({book}). Make a book of more views: {command}"
            )
        assert not (tmp_path / "run").exists()

    def test_a_method_of_two_views_of_which_one_is_asked_for(self, made, weights, tmp_path, refused):
        one = ["--views", "digits", "--views.n_views", "1", "--method", "mlkd"]
        said = "`n_views` to be at least 2 for method mlkd, got 1. Pass --views NAME --views.n_views 2."
        assert said in refused(learn(made, tmp_path / "run", *one))
        live = ["--teacher", "digits-large", "--teacher.weights", str(weights), "--student", "digits-small"]
        argv = ["learn", *DATA, *live, *one, "--validate_on", "", "--loggers", "[]", "--out", str(tmp_path / "run")]
        assert said in refused(main(argv))
        assert not (tmp_path / "run").exists()

    def test_a_field_that_the_book_has_not(self, made, tmp_path, refused):
        line = refused(learn(made, tmp_path / "run", "--method", user("AsksForFeatures")))
        assert "to have field 'features/last' for method asks-for-features, got logits" in line
        assert "bookkd make ... --features features/last" in line
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize(
        ("codec", "views", "methods", "said"),
        [
            ("dense", "1", "mlkd", ("at least 2 for method mlkd, got 1", "bookkd make ... --views.n_views 2")),
            ("top_k", "2", "dist", ("'logits' to be dense for method dist", "bookkd make ... --codec dense")),
            ("top_k", "2", "takd", ("honour temperature 5 for method takd", "--codec.temperatures including 5")),
            (
                "dense",
                "2",
                user("AsksForFeatures"),
                ("field 'features/last' for method asks", "bookkd make ... --features features/last"),
            ),
        ],
    )
    def test_a_sweep_is_refused_before_its_first_run(self, weights, tmp_path, refused, codec, views, methods, said):
        more = ["--codec.k", "4", "--codec.temperatures", "[4]"] if codec == "top_k" else []
        assert make(weights, tmp_path / "b", "--codec", codec, *more, "--views.n_views", views) == 0
        quick = ["--training.epochs", "1", "--training.batch_size", "32", "--training.accelerator", "cpu"]
        argv = ["compare", *DATA, "--students", "digits-small", "--methods", f"supervised,{methods}", *quick]
        line = refused(main([*argv, "--books", str(tmp_path / "b"), "--out", str(tmp_path / "runs")]))
        for words in (*said, " / digits-small / b"):
            assert words in line
        assert not (tmp_path / "runs").exists()


class TestNames:
    def test_nearest_names_are_listed(self, made, weights, tmp_path, refused):
        for call, near in (
            (lambda: main(["lern"]), "Nearest: learn"),
            (lambda: learn(made, tmp_path / "r", "--method", "vanila-kd"), "Nearest: vanilla-kd"),
            (lambda: learn(made, tmp_path / "r", "--method.temprature", "2"), "Nearest: --method.temperature"),
            (lambda: learn(made, tmp_path / "r", "--method.preset", "kera"), "Nearest: keras"),
            (lambda: learn(made, tmp_path / "r", "--student", "digit-small"), "Nearest: digits-small"),
            (lambda: make(weights, tmp_path / "b", "--codec", "int9"), "Nearest: int8"),
            (lambda: make(weights, tmp_path / "b", "--views", "digit"), "Nearest: digits"),
            (lambda: make(weights, tmp_path / "b", "--data", "cifar11"), "Nearest: cifar10"),
            (lambda: make(weights, tmp_path / "b", "--fields", "logit"), "Unknown option --fields"),
            (lambda: main(["bench", "lern"]), "Nearest: learn"),
            (lambda: main(["methods", "vanila"]), "Nearest: vanilla-kd"),
        ):
            assert near in refused(call())

    def test_values_out_of_range(self, made, tmp_path, refused):
        for more, words in (
            (["--method.temperature", "-1"], "`temperature` to be a number above 0, got -1"),
            (["--method.temperature", "warm"], "schedule"),
            (["--method.label_smoothing", "2"], "between 0 and 1"),
            (["--method.class_reduction", "max"], "class_reduction"),
            (["--training.epochs", "0"], "`epochs` to be a whole number of at least 1"),
            (["--training.lr", "x"], "lr"),
            (["--label_fraction", "0"], "label_fraction"),
            (["--label_fraction", "2"], "between 0 and 1, got 2"),
            (["--views.seed", "9"], "Pass --views NAME"),
            (["--teacher", "digits-large"], "`teacher` to be absent where a book is given"),
            (["--loggers", "wand"], "`logger` to be csv, tensorboard or package.module:Class"),
            (["--method.soft_loss", "mse"], "`class_reduction` to be mean with soft_loss mse"),
            (["--training.schedule", "step"], "milestones"),
        ):
            assert words in refused(learn(made, tmp_path / "run", *more)), more

    def test_a_user_module_that_is_not_there(self, made, tmp_path, refused):
        assert "importable" in refused(learn(made, tmp_path / "run", "--student", "no_such_module:Net"))
        assert "Nearest: Linear" in refused(learn(made, tmp_path / "run", "--student", user("Linaer")))

    def test_a_method_of_the_users_own(self, made, tmp_path, last_json):
        assert learn(made, tmp_path / "run", "--method", user("MyMethod"), "--student", user("Linear"), "--json") == 0
        assert last_json()["method"] == user("MyMethod")

    def test_a_config_file_that_is_not_there_or_says_nonsense(self, made, tmp_path, refused):
        assert "none.yaml" in refused(learn(made, tmp_path / "run", "--config", str(tmp_path / "none.yaml")))
        listed = tmp_path / "list.yaml"
        listed.write_text("- a\n- b\n")
        assert "hold options by name, got list" in refused(learn(made, tmp_path / "run", "--config", str(listed)))
        broken = tmp_path / "broken.yaml"
        broken.write_text("training: [1\n")
        assert "readable YAML" in refused(learn(made, tmp_path / "run", "--config", str(broken)))
        bad = tmp_path / "bad.yaml"
        bad.write_text("training: {epoks: 3}\n")
        assert "epoks" in refused(learn(made, tmp_path / "run", "--config", str(bad)))


class TestWeights:
    def test_pickled_weights_are_refused_with_the_way_to_convert_them(self, tmp_path, refused):
        path = tmp_path / "teacher.pth"
        torch.save(create_network("digits-large", n_classes=10).state_dict(), path)
        line = refused(make(path, tmp_path / "b"))
        assert "save_file" in line
        assert "weights_only=True" in line

    def test_a_plain_pickle_is_never_opened(self, tmp_path, refused):
        class Trap:
            def __reduce__(self):
                return (open, (str(tmp_path / "sprung"), "w"))

        path = tmp_path / "teacher.safetensors"
        path.write_bytes(pickle.dumps(Trap()))
        refused(make(path, tmp_path / "b"))
        assert not (tmp_path / "sprung").exists()

    def test_unreadable_weights(self, tmp_path, weights, refused):
        broken = tmp_path / "broken.safetensors"
        broken.write_bytes(weights.read_bytes()[:500])
        assert "broken.safetensors" in refused(make(broken, tmp_path / "b"))
        assert "absent.safetensors" in refused(make(tmp_path / "absent.safetensors", tmp_path / "b"))

    def test_weights_of_another_network(self, made, weights, tmp_path, refused):
        line = refused(learn(made, tmp_path / "run", "--student.init", str(weights)))
        assert "teacher.safetensors" in line


class TestMachine:
    @pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
    def test_no_gpu_asked_for_a_gpu(self, made, weights, tmp_path, refused):
        assert "present here: cpu" in refused(make(weights, tmp_path / "b", "--accelerator", "gpu"))
        assert "present here: cpu" in refused(learn(made, tmp_path / "run", "--training.accelerator", "cuda"))

    def test_a_full_disk(self, weights, tmp_path, refused):
        small = tmp_path / "small"
        small.mkdir()
        if subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=20k", "tmpfs", str(small)], capture_output=True
        ).returncode:
            pytest.skip("mounting a small tmpfs is not allowed here")
        try:
            line = refused(make(weights, small / "b", "--views.n_views", "8"))
            assert "No space left on device" in line
            assert "run again to resume" in line
            assert not list((small / "b").rglob("*.tmp"))
            subprocess.run(["mount", "-o", "remount,size=4m", str(small)], check=True)
            assert make(weights, small / "b", "--views.n_views", "8") == 0
            assert main(["verify", str(small / "b")]) == 0
        finally:
            subprocess.run(["umount", str(small)], check=True)

    def test_a_run_of_another_configuration_is_not_overwritten(self, made, tmp_path, refused):
        assert learn(made, tmp_path / "run") == 0
        line = refused(learn(made, tmp_path / "run", "--training.lr", "0.05"))
        assert "training.lr (0.1, now 0.05)" in line
        assert learn(made, tmp_path / "run", "--training.lr", "0.05", "--overwrite") == 0
