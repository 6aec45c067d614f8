# `make demo`, `make test` and `make study` first make .venv with everything in it.
# STUDY="--epochs 40" gives options.
SHELL := /bin/sh
PYTHON ?= python3
BIN := .venv/bin
UV := $(shell command -v uv 2>/dev/null)

DATA := data/phantom
DEMO := --data $(DATA) --name demo

.PHONY: demo test study clean

demo: .venv/ready
	test -f $(DATA)/PHANTOM.txt || \
	  $(BIN)/python tools/make_phantom.py --out $(DATA) --images 1500 --size 256 --seed 0
	$(BIN)/python train.py $(DEMO) --encoder-name tu-test_resnet --encoder-weights none \
	  --epochs 8 --batch-size 4 --lr 1e-3 --patience 3
	$(BIN)/python eval_auc.py $(DEMO)
	$(BIN)/python eval_loc.py $(DEMO)
	$(BIN)/python generate_heatmap.py $(DEMO) --out figs/demo
	@echo
	@echo "Trained, scored and drawn, without ever having seen a box. Look at:"
	@echo "  figs/demo/all/1.jpg               heatmaps beside the radiographs, with the boxes"
	@echo "  csv/demo/auroc.csv                AUROC of each class"
	@echo "  csv/demo/point_localization.csv   share of heatmaps whose maximum is in the box"
	@echo "  csv/demo/0.csv                    the training, a row an epoch"
	@echo "  save/demo/0/best                  the network: pylon.load_pylon('save/demo/0/best')"

test: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal --durations 5 --cov

study: .venv/ready
	$(BIN)/python benchmarks/study.py $(STUDY)

# A change of the requirements makes a new .venv, with the versions of requirements.lock. The package
# itself is installed from this folder, so a change of its code does not.
WHAT := -r requirements.txt -e '.[test]' -c requirements.lock

.venv/ready: pyproject.toml requirements.txt requirements.lock
	rm -rf .venv
ifdef UV
	uv venv --python $(PYTHON) .venv
	uv pip install --python $(BIN)/python $(WHAT)
else
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install $(WHAT)
endif
	touch $@

clean:
	rm -rf .venv
