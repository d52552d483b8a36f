# Every target works from a clean checkout on Debian with Go; what is missing is named.
GO       ?= go
VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
RUNSC    := $(shell $(GO) list -m -f '{{.Version}}' gvisor.dev/gvisor 2>/dev/null)
LDFLAGS  := -s -w -X main.version=$(VERSION) -X gvisor.dev/gvisor/runsc/version.version=$(RUNSC)
EMBEDDED := internal/image/embedded/bin
# One set of flags for everything, so that programs and tests share the build cache: compiling gVisor takes minutes.
export CGO_ENABLED := 0
export GOFLAGS     := -trimpath

.PHONY: build embedded demo test test-unit test-race test-root test-sdk lint bench clean

build: embedded ## bin/tartarus, with the guest agent and the tiny userland inside
	$(GO) build -ldflags '$(LDFLAGS)' -o bin/tartarus ./cmd/tartarus

embedded:
	GO=$(GO) internal/image/embedded/build.sh

demo: ## everything from set-up to a cleaned-up sandbox, with the time of each step
	./test/demo.sh

lint: embedded
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { gofmt -l $$(git ls-files '*.go'); exit 1; }
	$(GO) vet ./...
	GOARCH=arm64 $(GO) vet ./...
	$(GO) run honnef.co/go/tools/cmd/staticcheck@$(STATICCHECK) ./...
	./test/vuln.sh

clean:
	rm -rf bin $(EMBEDDED)/tartarus-*
