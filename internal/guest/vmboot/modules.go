package vmboot

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// loadModules loads what the initramfs brought, in its order, each with the parameters that the kernel command line has for it: the kernel gives
// those only to what is built in.
func loadModules(list, line string) error {
	order, err := os.ReadFile(filepath.Join(modulesDir, list))
	if err != nil {
		return fmt.Errorf("load modules: %w", err)
	}
	for _, name := range strings.Fields(string(order)) {
		if err := loadModule(name, parameters(name, line)); err != nil {
			return fmt.Errorf("load module %s: %w", name, err)
		}
	}
	return nil
}

func loadModule(name, params string) error {
	f, err := os.Open(filepath.Join(modulesDir, name))
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), params, 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}

// parameters are a module's on the command line: NAME.KEY=VALUE, where dashes and underscores are the same.
func parameters(name, line string) string {
	var out []string
	for _, word := range strings.Fields(line) {
		module, rest, ok := strings.Cut(word, ".")
		if ok && strings.ReplaceAll(module, "-", "_") == name {
			out = append(out, rest)
		}
	}
	return strings.Join(out, " ")
}
