# `make demo`, `make test`, `make study` and `make reproduce` first create .venv with all
# dependencies. STUDY="--seeds 5" passes options to the study, REPRODUCE="--data DIR" to the other.
SHELL := /bin/sh
PYTHON ?= python3
BIN := .venv/bin
UV := $(shell command -v uv 2>/dev/null)

DATA := data/phantom
DEMO := --data $(DATA) --name demo
PROSE := Makefile $(wildcard *.md *.py *.toml *.txt *.cff) data/README.md docs pylon tools tests \
  experiments benchmarks .github/*/*

.PHONY: demo test study reproduce clean

demo: .venv/ready
	test -f $(DATA)/PHANTOM.txt || \
	  $(BIN)/python tools/phantom/make_phantom.py --out $(DATA) --images 1500 --size 256 --seed 0
	$(BIN)/python train.py $(DEMO) --encoder-name tu-test_resnet --encoder-weights none \
	  --epochs 18 --batch-size 4 --lr 2e-3 --patience 4
	$(BIN)/python eval_auc.py $(DEMO)
	$(BIN)/python eval_loc.py $(DEMO)
	$(BIN)/python generate_heatmap.py $(DEMO) --out figs/demo
	@echo
	@echo "Done: trained without any bounding boxes, then evaluated with them. Results:"
	@echo "  figs/demo/all/1.jpg               heatmaps next to the radiographs, with the boxes"
	@echo "  csv/demo/auroc.png                AUROC per class (all tables: csv/demo/*.csv)"
	@echo "  csv/demo/point_localization.png   share of heatmaps whose maximum is inside the box"
	@echo "  csv/demo/box_localization.png     share of boxes that a region of the heatmap matches"
	@echo "  csv/demo/0.png                    how the training went; 0.csv, one row per epoch"
	@echo "  save/demo/0/best                  the best checkpoint: pylon.load_pylon('save/demo/0/best')"

test: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell $(PROSE)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal --durations 5 \
	  $(if $(PYLON_LONG),--cov)

study: .venv/ready
	$(BIN)/python experiments/study.py $(STUDY)

reproduce: .venv/ready
	$(BIN)/python tools/reproduce.py $(REPRODUCE)

# Changed requirements rebuild .venv, with the versions in requirements.lock. The package itself is
# installed in editable mode, so changes to its code do not.
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
