# Two commands do everything: `make demo` and `make test`. Both set up .venv first.
VENV ?= .venv
DOCS_VENV ?= .venv-docs
export VENV STACK
PY = $(VENV)/bin/python

.PHONY: setup demo demo-classification test test-configs test-matrix check-mmcv lint docs clean

setup:
	@bash tools/setup_env.sh

demo: setup
	$(PY) tools/maintain/make_digits.py
	$(PY) tools/compare.py configs/demo/gfl_r18_fpn_digits.py configs/demo/faster-rcnn_swin_fpn_digits.py \
		--checkpoints demo/gfl_r18_fpn_digits.pth demo/faster-rcnn_swin_fpn_digits.pth \
		--names 'GFL, ResNet-18' 'Faster R-CNN, Swin' --representations lattice --default --bits 0.5 1 --tune 300 \
		--rounding 3 4 6 8 --out work_dirs/demo

demo-classification: setup
	set -e; for name in digits_lenet digits_vit; do \
		$(PY) tools/train.py configs/classification/$$name.py --work-dir work_dirs/$$name; \
		$(PY) tools/compress.py configs/classification/$$name.py $$(cat work_dirs/$$name/last_checkpoint) \
			--out work_dirs/$$name/$$name.riem --force; \
		$(PY) tools/test.py work_dirs/$$name/$$name.py work_dirs/$$name/$$name.riem --work-dir work_dirs/$$name; \
	done

test: setup
	$(PY) -m pytest

# other versions of Python, torch and mm*: gigabytes of downloads and hours; the table in docs/install.md comes from it
test-matrix: setup
	$(PY) tools/maintain/test_matrix.py

# compiles mmcv the ordinary way, too (15 minutes on 2 cores), and compares all its ops with those of the quick build
check-mmcv: setup
	$(PY) tools/maintain/check_mmcv.py --build $$(sed -n 's/^# build: //p' requirements-$$(cat $(VENV)/.stack).txt)

test-configs: setup
	$(PY) -m pytest -m configs tests/configs/test_stock.py

lint: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

# the site of docs/, in work_dirs/site; with an environment of its own, as it needs nothing of the other one
docs: $(DOCS_VENV)/.ready
	NO_MKDOCS_2_WARNING=1 $(DOCS_VENV)/bin/mkdocs build --strict

$(DOCS_VENV)/.ready: requirements-docs.txt
	python3 -m venv $(DOCS_VENV)
	$(DOCS_VENV)/bin/python -m pip --disable-pip-version-check install -q -r requirements-docs.txt
	touch $@

clean:
	rm -rf $(VENV) $(DOCS_VENV) work_dirs build *.egg-info .pytest_cache .ruff_cache .hypothesis
