package cli

import (
	"bytes"
	"context"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// lay writes a tree: names that end with a slash are folders, values that start with -> are links.
func lay(t *testing.T, root string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		p := filepath.Join(root, name)
		err := os.MkdirAll(filepath.Dir(p), 0o755)
		switch {
		case strings.HasSuffix(name, "/"):
			err = os.MkdirAll(p, 0o755)
		case strings.HasPrefix(content, "->"):
			err = os.Symlink(content[2:], p)
		case err == nil:
			err = os.WriteFile(p, []byte(content), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// tree reads one back, without following links.
func readTree(t *testing.T, root string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == root {
			return err
		}
		name, _ := filepath.Rel(root, p)
		switch {
		case d.IsDir():
			out[name+"/"] = ""
		case d.Type()&fs.ModeSymlink != 0:
			target, _ := os.Readlink(p)
			out[name] = "->" + target
		default:
			raw, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			out[name] = string(raw)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func same(t *testing.T, got, want map[string]string) {
	t.Helper()
	for name, content := range want {
		if g, ok := got[name]; !ok || g != content {
			t.Errorf("%s: %q, want %q", name, g, content)
		}
	}
	for name := range got {
		if _, ok := want[name]; !ok {
			t.Errorf("%s: should not be there", name)
		}
	}
}

func TestCopyRules(t *testing.T) {
	for name, tc := range map[string]struct {
		here, there   map[string]string // before
		from, to      string            // @ stands for the sandbox, ~ for the folder here
		after, inside map[string]string // what is where afterwards, nil: not looked at
	}{
		"file in":              {map[string]string{"a": "1"}, nil, "~/a", "@/x/y", nil, map[string]string{"x/": "", "x/y": "1"}},
		"file into folder":     {map[string]string{"a": "1"}, map[string]string{"d/": ""}, "~/a", "@/d", nil, map[string]string{"d/": "", "d/a": "1"}},
		"file into new folder": {map[string]string{"a": "1"}, nil, "~/a", "@/d/", nil, map[string]string{"d/": "", "d/a": "1"}},
		"file over file":       {map[string]string{"a": "1"}, map[string]string{"b": "2"}, "~/a", "@/b", nil, map[string]string{"b": "1"}},
		"folder as": {map[string]string{"d/a": "1", "d/e/b": "2", "d/empty/": ""}, nil, "~/d", "@/new", nil,
			map[string]string{"new/": "", "new/a": "1", "new/e/": "", "new/e/b": "2", "new/empty/": ""}},
		"folder into":          {map[string]string{"d/a": "1"}, map[string]string{"x/": ""}, "~/d", "@/x", nil, map[string]string{"x/": "", "x/d/": "", "x/d/a": "1"}},
		"contents":             {map[string]string{"d/a": "1"}, map[string]string{"x/": ""}, "~/d/.", "@/x", nil, map[string]string{"x/": "", "x/a": "1"}},
		"file out":             {nil, map[string]string{"a": "1"}, "@/a", "~/b", map[string]string{"b": "1"}, nil},
		"file out into folder": {map[string]string{"d/": ""}, map[string]string{"a": "1"}, "@/a", "~/d", map[string]string{"d/": "", "d/a": "1"}, nil},
		"folder out as":        {nil, map[string]string{"d/a": "1", "d/l": "->a", "d/e/": ""}, "@/d", "~/new", map[string]string{"new/": "", "new/a": "1", "new/l": "->a", "new/e/": ""}, nil},
		"folder out into":      {map[string]string{"x/": ""}, map[string]string{"d/a": "1"}, "@/d", "~/x", map[string]string{"x/": "", "x/d/": "", "x/d/a": "1"}, nil},
		"contents out":         {map[string]string{"x/b": "2"}, map[string]string{"d/a": "1"}, "@/d/.", "~/x", map[string]string{"x/": "", "x/b": "2", "x/a": "1"}, nil},
		"over a file here":     {map[string]string{"b": "2"}, map[string]string{"a": "1"}, "@/a", "~/b", map[string]string{"b": "1"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			x := newFixture(t)
			id := x.makeOne(t)
			here := t.TempDir()
			lay(t, here, tc.here)
			lay(t, x.guest.root, tc.there)
			fill := strings.NewReplacer("@", id+":", "~", here)
			if code := x.run(t, "cp", fill.Replace(tc.from), fill.Replace(tc.to)); code != 0 {
				t.Fatalf("code %d", code)
			}
			if tc.after != nil {
				same(t, readTree(t, here), tc.after)
			}
			if tc.inside != nil {
				same(t, readTree(t, x.guest.root), tc.inside)
			}
		})
	}
}

func TestCopyStreams(t *testing.T) {
	x := newFixture(t)
	id := x.makeOne(t)
	x.Stdin = strings.NewReader("from stdin")
	if code := x.run(t, "cp", "-", id+":/f"); code != 0 {
		t.Fatalf("in: code %d", code)
	}
	if code := x.run(t, "cp", id+":/f", "-"); code != 0 || x.out.String() != "from stdin" {
		t.Fatalf("out: code %d", code)
	}
}

func TestCopyOfWhatIsNotThere(t *testing.T) {
	x := newFixture(t)
	id := x.makeOne(t)
	dir := t.TempDir()
	if code := x.run(t, "cp", id+":/absent", dir); code != 125 || !strings.Contains(x.err.String(), "/absent") {
		t.Errorf("out: code %d", code)
	}
	if code := x.run(t, "cp", filepath.Join(dir, "absent"), id+":/x"); code != 125 {
		t.Errorf("in: code %d", code)
	}
	same(t, readTree(t, dir), nil)
}

func TestCopyInKeepsLinksAndExecutables(t *testing.T) {
	x := newFixture(t)
	id := x.makeOne(t)
	here := t.TempDir()
	lay(t, here, map[string]string{"d/run": "#!/bin/sh\n", "d/plain": "", "d/link": "->run"})
	if err := os.Chmod(filepath.Join(here, "d/run"), 0o755); err != nil {
		t.Fatal(err)
	}
	ok := func(p *fakeProcess) { p.exit(0) }
	x.guest.commands["chmod"], x.guest.commands["ln"] = ok, ok
	if code := x.run(t, "cp", filepath.Join(here, "d"), id+":/d"); code != 0 {
		t.Fatalf("code %d", code)
	}
	var ran []string
	for _, c := range x.guest.runs {
		ran = append(ran, strings.Join(c.argv, " "))
	}
	if got := strings.Join(ran, "; "); got != "ln -s -f run /d/link; chmod 755 /d/run" {
		t.Errorf("ran %s", got)
	}
}

// TestCopyOutTrustsNoNames: a guest that names files to climb out of the target gets nowhere.
func TestCopyOutTrustsNoNames(t *testing.T) {
	for _, name := range []string{"..", "../x", "/etc/passwd", "a/b", "", ".", "a\x00b"} {
		dir := t.TempDir()
		target := filepath.Join(dir, "target")
		g := &lyingGuest{list: []entry{{name: name, mode: 0o644}}}
		x := newFixture(t)
		if err := x.copyOut(t.Context(), g, "", "/d", target); err == nil || !strings.Contains(err.Error(), "is no name") {
			t.Errorf("%q: %v", name, err)
		}
		same(t, readTree(t, dir), map[string]string{"target/": ""})
	}
}

// TestCopyOutFollowsNoLinks: a link that the guest plants first does not carry a later file outside.
func TestCopyOutFollowsNoLinks(t *testing.T) {
	dir := t.TempDir()
	lay(t, dir, map[string]string{"outside/": "", "target/": "", "target/d/sub": "->../../outside", "victim": "old", "target/d/f": "->../../victim"})
	g := &lyingGuest{list: []entry{{name: "sub", mode: fs.ModeDir | 0o755}, {name: "f", mode: 0o4777}}, deeper: []entry{{name: "evil", mode: 0o644}}}
	x := newFixture(t)
	err := x.copyOut(t.Context(), g, "", "/d", filepath.Join(dir, "target"))
	if err == nil {
		t.Error("a folder was made through a link")
	}
	got := readTree(t, dir)
	if _, escaped := got["outside/evil"]; escaped || got["victim"] != "old" {
		t.Errorf("%v", got)
	}
	// Without the planted folder the planted file link is replaced, and the set-uid bit does not survive.
	if err := os.Remove(filepath.Join(dir, "target/d/sub")); err != nil {
		t.Fatal(err)
	}
	if err := x.copyOut(t.Context(), g, "", "/d", filepath.Join(dir, "target")); err != nil {
		t.Fatal(err)
	}
	if got := readTree(t, dir); got["victim"] != "old" || got["target/d/f"] != "data" {
		t.Errorf("%v", got)
	}
	info, err := os.Stat(filepath.Join(dir, "target/d/f"))
	if err != nil || info.Mode() != 0o755 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}

// TestCopyOutEnds: a guest whose folders never end does not keep us for ever.
func TestCopyOutEnds(t *testing.T) {
	x := newFixture(t)
	g := &lyingGuest{endless: true}
	if err := x.copyOut(t.Context(), g, "", "/d", filepath.Join(t.TempDir(), "t")); err == nil || !strings.Contains(err.Error(), "nested deeper") {
		t.Errorf("%v", err)
	}
}

// lyingGuest says of its files whatever it likes.
type lyingGuest struct {
	guest
	list, deeper []entry
	endless      bool
}

func (g *lyingGuest) Stat(context.Context, string, string) (entry, error) {
	return entry{name: "d", path: "/d", mode: fs.ModeDir | 0o755}, nil
}

func (g *lyingGuest) List(_ context.Context, _, p string) ([]entry, error) {
	if g.endless {
		return []entry{{name: "d", mode: fs.ModeDir | 0o755}}, nil
	}
	if p == "/d" {
		return g.list, nil
	}
	return g.deeper, nil
}

func (g *lyingGuest) Read(context.Context, string, string) (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader([]byte("data"))), nil
}

func TestParsePlace(t *testing.T) {
	for in, want := range map[string]place{
		"iabc:/x": {"iabc", "/x"}, "iabc:rel/x": {"iabc", "rel/x"}, "./iabc:x": {"", "./iabc:x"}, "/a:b": {"", "/a:b"},
		"plain": {"", "plain"}, "-": {"", "-"}, "Upper:x": {"", "Upper:x"}, "id:a:b": {"id", "a:b"},
	} {
		if got, err := parsePlace(in); err != nil || got != want {
			t.Errorf("%s: %+v, %v", in, got, err)
		}
	}
	for _, in := range []string{"", "iabc:"} {
		if got, err := parsePlace(in); err == nil {
			t.Errorf("%q: %+v", in, got)
		}
	}
}
