package kernel

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/tartarus-sandbox/tartarus"
)

// maxModule bounds one module: the largest of a distribution's have 10 MB.
const maxModule = 64 << 20

// Module is one loadable module, unpacked.
type Module struct {
	Name string // with underscores
	Data []byte
}

// modules is a folder of modules.
type modules struct {
	dir     string
	paths   map[string]string // by name
	builtin map[string]bool
	depends map[string][]string // by name, from modules.dep; nil without that file
}

// openModules indexes a modules folder. modules.dep, which depmod makes when a kernel is installed, gives what depends on what; a
// folder without it, as unpacked from a package, is walked, and each module says itself what it depends on.
func openModules(dir string) (*modules, error) {
	m := &modules{dir: dir, paths: map[string]string{}, builtin: map[string]bool{}}
	list, err := os.ReadFile(filepath.Join(dir, "modules.builtin"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read modules: %w", err)
	}
	for line := range strings.Lines(string(list)) {
		m.builtin[moduleName(strings.TrimSpace(line))] = true
	}
	list, err = os.ReadFile(filepath.Join(dir, "modules.dep"))
	if err == nil {
		m.depends = map[string][]string{}
		for line := range strings.Lines(string(list)) {
			path, needs, ok := strings.Cut(strings.TrimSpace(line), ":")
			if !ok || !filepath.IsLocal(path) {
				continue
			}
			name := moduleName(path)
			m.paths[name] = path
			// The file lists the nearest dependency first, and all of them.
			for _, p := range strings.Fields(needs) {
				m.depends[name] = append(m.depends[name], moduleName(p))
			}
		}
		return m, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read modules: %w", err)
	}
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.Type().IsRegular() && strings.Contains(d.Name(), ".ko") {
			rel, err := filepath.Rel(dir, path)
			if err != nil {
				return err
			}
			m.paths[moduleName(path)] = rel
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read modules: %w", err)
	}
	return m, nil
}

// moduleName is a module's name: that of its file, in which dashes and underscores are the same.
func moduleName(path string) string {
	name, _, _ := strings.Cut(filepath.Base(path), ".ko")
	return strings.ReplaceAll(name, "-", "_")
}

// has reports whether a module is built in or there to load.
func (m *modules) has(name string) bool { return m.builtin[name] || m.paths[name] != "" }

// resolve lists the modules that have to be loaded for the wanted ones, in the order in which to load them. What is built in is left out.
func (m *modules) resolve(wanted []string) ([]Module, error) {
	var out []Module
	seen := map[string]bool{}
	var visit func(name string, soft bool, above []string) error
	visit = func(name string, soft bool, above []string) error {
		if seen[name] || m.builtin[name] {
			return nil
		}
		if m.paths[name] == "" {
			if soft {
				return nil // that is what soft means
			}
			return tartarus.Errorf(tartarus.NotFound, "kernel module %s is not in %s", strings.Join(append(above, name), " needs "), m.dir)
		}
		seen[name] = true // before its dependencies: soft ones may go in circles
		data, err := m.read(name)
		if err != nil {
			return err
		}
		info, err := modinfo(data)
		if err != nil {
			return fmt.Errorf("read module %s: %w", name, err)
		}
		for _, n := range info.pre {
			if err := visit(n, true, append(above, name)); err != nil {
				return err
			}
		}
		needs := info.depends
		if m.depends != nil {
			needs = m.depends[name]
		}
		for i := range needs {
			if err := visit(needs[len(needs)-1-i], false, append(above, name)); err != nil {
				return err
			}
		}
		out = append(out, Module{Name: name, Data: data})
		return nil
	}
	for _, name := range wanted {
		if err := visit(name, false, nil); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// read loads a module and unpacks it.
func (m *modules) read(name string) ([]byte, error) {
	path := filepath.Join(m.dir, m.paths[name])
	st, err := os.Stat(path)
	if err != nil || st.Size() > maxModule {
		return nil, fmt.Errorf("read module %s: %d bytes, %w", name, st.Size(), err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read module: %w", err)
	}
	for _, c := range compressions {
		if c.open == nil || !bytes.HasPrefix(data, []byte(c.magic)) {
			continue
		}
		r, err := c.open(bytes.NewReader(data))
		if err != nil {
			return nil, fmt.Errorf("unpack module %s: %w", name, err)
		}
		if data, err = io.ReadAll(io.LimitReader(r, maxModule)); err != nil {
			return nil, fmt.Errorf("unpack module %s: %w", name, err)
		}
		break
	}
	return data, nil
}

// needs is what a module says of itself.
type needs struct {
	depends []string
	pre     []string // soft dependencies to be loaded before
}

// modinfo reads the section .modinfo: NAME=VALUE strings with zeros between them.
func modinfo(data []byte) (needs, error) {
	var n needs
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return n, tartarus.Errorf(tartarus.Invalid, "not a module: %w", err)
	}
	s := f.Section(".modinfo")
	if s == nil {
		return n, tartarus.Errorf(tartarus.Invalid, "not a module: it has no .modinfo")
	}
	info, err := s.Data()
	if err != nil {
		return n, tartarus.Errorf(tartarus.Invalid, "not a module: %w", err)
	}
	for entry := range strings.SplitSeq(string(info), "\x00") {
		key, value, _ := strings.Cut(entry, "=")
		switch key {
		case "depends":
			for _, d := range strings.FieldsFunc(value, func(r rune) bool { return r == ',' }) {
				n.depends = append(n.depends, moduleName(d))
			}
		case "softdep":
			pre := false
			for _, word := range strings.Fields(value) {
				switch {
				case strings.HasSuffix(word, ":"):
					pre = word == "pre:"
				case pre:
					n.pre = append(n.pre, moduleName(word))
				}
			}
		}
	}
	return n, nil
}
