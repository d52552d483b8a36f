package firecracker

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tartarus-sandbox/tartarus/internal/vmm/users"
)

// TestExamineUsers lays out hosts on which the range of monitors' users is free, and others where somebody has some of it.
func TestExamineUsers(t *testing.T) {
	whole := "         0          0 4294967295\n"
	for name, tc := range map[string]struct {
		files map[string]string
		says  string // of the fix; empty where all is well
	}{
		"free":           {map[string]string{"etc/passwd": "root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n", "etc/subuid": "a:100000:65536\n", "proc/self/uid_map": whole}, ""},
		"nothing known":  {nil, ""},
		"a user":         {map[string]string{"etc/passwd": "eve:x:1900000003:100::/:/bin/sh\n"}, "eve"},
		"a group":        {map[string]string{"etc/group": "staff:x:1900000009:\n"}, "staff"},
		"sub-users":      {map[string]string{"etc/subuid": "bob:1899999000:65536\n"}, "bob"},
		"just before":    {map[string]string{"etc/subuid": "bob:1899990000:10000\n"}, ""},
		"just behind":    {map[string]string{"etc/passwd": "z:x:1900000010:1::/:/bin/sh\n"}, ""},
		"not mapped":     {map[string]string{"proc/self/uid_map": "         0     100000      65536\n"}, "user namespace"},
		"damaged passwd": {map[string]string{"etc/passwd": "::::\nx\n\n"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir() + "/"
			for path, content := range tc.files {
				if err := os.MkdirAll(filepath.Dir(root+path), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(root+path, []byte(content), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			d := &Driver{cfg: Config{Users: users.Range{First: 1_900_000_000, Count: 10}}}
			got := d.examineUsers(root)
			if (tc.says == "") != (got.Fix == "") || !strings.Contains(got.Fix, tc.says) || !strings.Contains(got.Detail, "1900000000 to 1900000009") {
				t.Errorf("%+v", got)
			}
		})
	}
}

func TestExamineJailer(t *testing.T) {
	program := filepath.Join(t.TempDir(), "jailer")
	look := func() (string, string) {
		f := (&Driver{cfg: Config{Jailer: program}}).examineJailer(t.Context())
		return f.Detail, f.Fix
	}
	if _, fix := look(); !strings.Contains(fix, "./dev-setup.sh") {
		t.Errorf("of none at all: %s", fix)
	}
	if err := os.WriteFile(program, []byte("#!/bin/sh\necho Jailer v1.12.1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		if detail, fix := look(); fix != "" || !strings.HasPrefix(detail, "1.12.1") {
			t.Errorf("%s, %s", detail, fix)
		}
	}
	if err := os.Chmod(program, 0o757); err != nil {
		t.Fatal(err)
	}
	if detail, fix := look(); !strings.Contains(fix, "chmod") {
		t.Errorf("of one that all may write: %s, %s", detail, fix)
	}
	if f := (&Driver{}).examineJailer(t.Context()); !strings.Contains(f.Detail, "not installed") || !strings.Contains(f.Fix, "./dev-setup.sh") {
		t.Errorf("%+v", f)
	}
}

func TestExamineFaults(t *testing.T) {
	on := &Driver{cfg: Config{PageFaults: PageFaults{Handler: true}}}
	for name, tc := range map[string]struct {
		d       *Driver
		missing error
		fix     bool
	}{
		"on and there": {on, nil, false}, "on and missing": {on, errors.New("none"), true},
		"off and there": {&Driver{}, nil, false}, "off and missing": {&Driver{}, errors.New("none"), false},
	} {
		if f := tc.d.examineFaults(tc.missing); (f.Fix != "") != tc.fix || f.Detail == "" {
			t.Errorf("%s: %+v", name, f)
		}
	}
}
