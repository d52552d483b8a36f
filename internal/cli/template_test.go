package cli

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus/internal/image"
)

func TestTemplateSources(t *testing.T) {
	for from, want := range map[string]image.Spec{
		"":                     {Name: "base", Recipe: "base"},
		"debian:12":            {Name: "base", OCI: "debian:12"},
		"reg.example:5000/a/b": {Name: "base", OCI: "reg.example:5000/a/b"},
		"dir:./x":              {Name: "base", Dir: "./x"},
		"tar:/x.tar.gz":        {Name: "base", Tar: "/x.tar.gz"},
		"archive:x":            {Name: "base", Archive: "x"},
		"layout:x":             {Name: "base", Layout: "x"},
	} {
		got, err := (&building{from: from}).spec("base", lookup(nil))
		got.Env = nil
		if err != nil || got.Recipe != want.Recipe || got.OCI != want.OCI || got.Dir != want.Dir || got.Tar != want.Tar || got.Archive != want.Archive || got.Layout != want.Layout {
			t.Errorf("%q: %+v, %v", from, got, err)
		}
	}
	if _, err := (&building{}).spec("mine", lookup(nil)); err == nil || !strings.Contains(err.Error(), "--from") {
		t.Errorf("a name without a recipe: %v", err)
	}
	got, err := (&building{from: "x", memory: "1G", disk: "2G", tags: []string{"a"}}).spec("mine:b", lookup(nil))
	if err != nil || got.Name != "mine" || strings.Join(got.Tags, " ") != "a b" || got.MemoryMB != 1024 || got.DiskMB != 2048 {
		t.Errorf("%+v, %v", got, err)
	}
}

// TestTemplateOfAFolder builds a real template from a folder, lists it, finds it built already, and removes it.
func TestTemplateOfAFolder(t *testing.T) {
	dir, data := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "hello"), []byte("hi"), 0o644); err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) (code int, out, errs string) {
		var stdout, stderr bytes.Buffer
		e := &Env{Stdin: strings.NewReader(""), Stdout: &stdout, Stderr: &stderr, lookup: lookup(map[string]string{"TARTARUS_DATA": data})}
		code = e.main(t.Context(), append([]string{"template"}, args...))
		t.Logf("%v: code %d\n%s%s", args, code, &stdout, &stderr)
		return code, stdout.String(), stderr.String()
	}
	code, out, errs := run("build", "mine", "--from", "dir:"+dir, "--memory", "256M")
	if strings.Contains(errs, "not built into this program") || strings.Contains(errs, "embedded") {
		t.Skip("the guest agent is not embedded in this test binary: " + errs)
	}
	if code != 0 || out != "mine\n" || !strings.Contains(errs, "ready") || strings.Contains(errs, "\x1b") {
		t.Fatalf("build: code %d, %q", code, errs)
	}
	code, out, _ = run("ls", "--json")
	var list []templateDocument
	if err := json.Unmarshal([]byte(out), &list); code != 0 || err != nil || len(list) != 1 || list[0].Name != "mine" || list[0].MemoryMB != 256 || list[0].SizeBytes == 0 {
		t.Fatalf("ls: code %d, %v, %+v", code, err, list)
	}
	if code, _, _ = run("rm", "mine"); code != 0 {
		t.Fatalf("rm: code %d", code)
	}
	if code, _, errs = run("rm", "mine"); code != 125 || !strings.Contains(errs, "not found") {
		t.Fatalf("rm again: code %d", code)
	}
	if code, out, _ = run("ls", "--json"); code != 0 || strings.TrimSpace(out) != "[]" {
		t.Fatalf("ls after: code %d, %s", code, out)
	}
}

func TestTemplateBuildIsLocal(t *testing.T) {
	x := newFixture(t)
	if code := x.run(t, "template", "build", "base"); code != 125 || !strings.Contains(x.err.String(), "--url") {
		t.Errorf("code %d", code)
	}
}

func TestMissingTemplateSaysHowToBuildIt(t *testing.T) {
	x := newFixture(t)
	x.server.missing = "base"
	if code := x.run(t, "run", "--template", "base", "--", "x"); code != 125 || !strings.Contains(x.err.String(), "`tartarus template build base`") {
		t.Errorf("code %d", code)
	}
}

func TestProgressLines(t *testing.T) {
	var out bytes.Buffer
	start := time.Unix(0, 0)
	p := &progress{out: &out, started: start}
	p.report(image.Progress{Stage: "packages", Message: "one"}, start.Add(time.Second))
	p.report(image.Progress{Stage: "packages", Message: "too soon"}, start.Add(2*time.Second))
	p.report(image.Progress{Stage: "packages", Done: 1, Total: 4, Message: "two"}, start.Add(7*time.Second))
	p.report(image.Progress{Stage: "write image", Message: "three"}, start.Add(7*time.Second))
	p.finish()
	want := "  1.0s  packages       one\n  7.0s  packages        25%  two\n  7.0s  write image    three\n"
	if out.String() != want {
		t.Errorf("got\n%swant\n%s", &out, want)
	}
	out.Reset()
	p = &progress{out: &out, started: start, width: 30}
	p.report(image.Progress{Stage: "packages", Message: "a long message that does not fit"}, start.Add(time.Second))
	p.finish()
	if got := out.String(); got != "\r\x1b[K  1.0s  packages       a long\n" {
		t.Errorf("%q", got)
	}
}
