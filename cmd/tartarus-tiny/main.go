// Command tartarus-tiny is the whole userland of the template "tiny": a shell and small tools in one static
// binary, chosen by the name it is called by (or by its first argument).
// Every applet behaves as its POSIX namesake in what it supports, and refuses what it does not with exit code 2.
//
// The shell is mvdan.cc/sh; many tools are u-root's. What neither has, or has in a form that scripts trip
// over, is here, each in a few lines. That makes the package longer than most: one program, eighty small tools.
package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/u-root/u-root/pkg/core"
	"github.com/u-root/u-root/pkg/core/base64"
	"github.com/u-root/u-root/pkg/core/cat"
	"github.com/u-root/u-root/pkg/core/cp"
	"github.com/u-root/u-root/pkg/core/mkdir"
	"github.com/u-root/u-root/pkg/core/mktemp"
	"github.com/u-root/u-root/pkg/core/mv"
	"github.com/u-root/u-root/pkg/core/rm"
	"github.com/u-root/u-root/pkg/core/touch"
)

// applet runs with its arguments, without its own name. An error of type exitCode is printed by nobody.
type applet func(args []string) error

// exitCode ends an applet with a code and no message.
type exitCode int

func (e exitCode) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// usage is an error in how an applet was called.
func usage(format string, args ...any) error { return usageError(fmt.Sprintf(format, args...)) }

type usageError string

func (e usageError) Error() string { return string(e) }

func main() { os.Exit(run(os.Args)) }

func run(argv []string) int {
	name := strings.TrimPrefix(filepath.Base(argv[0]), "-") // login shells are called -sh
	args := argv[1:]
	all := applets()
	if all[name] == nil {
		switch {
		case len(args) > 0 && args[0] == "--list":
			for _, name := range slices.Sorted(maps.Keys(all)) {
				fmt.Println(name)
			}
			return 0
		case len(args) > 0 && all[args[0]] != nil:
			name, args = args[0], args[1:]
		default:
			fmt.Fprintln(os.Stderr, "usage: tartarus-tiny APPLET [ARG]...\n       tartarus-tiny --list")
			return 2
		}
	}
	return exit(name, all[name](args))
}

func exit(name string, err error) int {
	var code exitCode
	var bad usageError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &code):
		return int(code)
	case errors.Is(err, syscall.EPIPE):
		return 128 + int(syscall.SIGPIPE)
	case errors.As(err, &bad):
		fmt.Fprintf(os.Stderr, "%s: %s\n", name, bad)
		return 2
	}
	fmt.Fprintf(os.Stderr, "%s: %s\n", name, plain(err))
	return 1
}

// plain turns "open x: no such file or directory" into what tools say: "x: no such file or directory".
func plain(err error) string {
	if pe, ok := err.(*fs.PathError); ok {
		return pe.Path + ": " + pe.Err.Error()
	}
	return err.Error()
}

// uroot makes an applet of one of u-root's commands.
func uroot(make func() core.Command) applet {
	return func(args []string) error { return make().RunContext(context.Background(), args...) }
}

// applets is the one table of what there is.
func applets() map[string]applet {
	all := map[string]applet{
		"sh": shell, "bash": shell, "ash": shell,
		"base64": uroot(base64.New), "cat": uroot(cat.New), "cp": uroot(cp.New), "mkdir": uroot(mkdir.New),
		"mktemp": uroot(mktemp.New), "mv": uroot(mv.New), "rm": uroot(rm.New), "touch": uroot(touch.New),
	}
	for _, group := range []map[string]applet{fileApplets, textApplets, searchApplets, processApplets, systemApplets, netApplets, archiveApplets} {
		maps.Copy(all, group)
	}
	return all
}
