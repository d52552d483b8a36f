// Command sdk drives the published E2B packages as clients of a real stack and writes the compatibility table docs/e2b.md.
// Every method in methods.json must have been called, or its absence explained, in every release it is driven through; else the run fails.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// options are what the command line can say.
type options struct {
	root      string // of the checkout
	bin       string // the program under test
	cache     string // packages, kept between runs
	templates string // data folder whose templates are used
	quick     bool
	writeDocs bool
	keep      bool // leave the folder of the run where it is
	only      []string
	parallel  int
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "test-sdk:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	o, err := parse(args)
	if err != nil {
		return err
	}
	reg, err := readRegister(filepath.Join(o.root, "test/sdk/methods.json"))
	if err != nil {
		return err
	}
	chosen := choose(o)
	if len(chosen) == 0 {
		return fmt.Errorf("no lane is called %s; there are %s", strings.Join(o.only, ", "), strings.Join(laneNames(), ", "))
	}
	start := time.Now()
	envs, err := prepare(ctx, o, chosen)
	if err != nil {
		return err
	}
	step(start, "packages are there")
	st, err := startStack(ctx, o)
	if err != nil {
		return err
	}
	step(start, "stack is up, "+st.describe())
	runLanes(ctx, o, st, envs, chosen, start)
	results, err := readResults(st.results, chosen)
	errs := []error{ctx.Err(), st.stop(o), err}
	if err == nil {
		errs = append(errs, judge(reg, results, o), docs(reg, results, o))
	}
	step(start, "done")
	return errors.Join(errs...)
}

func parse(args []string) (options, error) {
	o := options{}
	fs := flag.NewFlagSet("sdk", flag.ContinueOnError)
	fs.BoolVar(&o.quick, "quick", false, "newest releases only: create, run, write and read, list, kill")
	fs.BoolVar(&o.writeDocs, "write-docs", false, "write docs/e2b.md from the results")
	fs.BoolVar(&o.keep, "keep", false, "leave the folder of the run, with the server's log, where it is")
	fs.StringVar(&o.bin, "bin", "", "program under test (default bin/tartarus)")
	fs.IntVar(&o.parallel, "parallel", 2, "lanes that run at the same time")
	only := fs.String("only", "", "comma-separated lanes, or beginnings of their names")
	if err := fs.Parse(args); err != nil {
		return o, err
	}
	if *only != "" {
		o.only = strings.Split(*only, ",")
	}
	var err error
	if o.root, err = findRoot(); err != nil {
		return o, err
	}
	if o.bin == "" {
		o.bin = filepath.Join(o.root, "bin", "tartarus")
	}
	if o.bin, err = filepath.Abs(o.bin); err != nil {
		return o, err
	}
	if _, err := os.Stat(o.bin); err != nil {
		return o, fmt.Errorf("find program: %w; `make build` makes it", err)
	}
	if o.templates = os.Getenv("TARTARUS_TEST_DATA"); o.templates == "" {
		o.templates = filepath.Join(o.root, "data")
	}
	if o.cache = os.Getenv("TARTARUS_TEST_CACHE"); o.cache == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return o, fmt.Errorf("find cache folder: %w", err)
		}
		o.cache = filepath.Join(home, ".cache", "tartarus-test")
	}
	return o, nil
}

// findRoot walks up to the folder of go.mod.
func findRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("find checkout: %w", err)
	}
	for at := dir; ; at = filepath.Dir(at) {
		if _, err := os.Stat(filepath.Join(at, "go.mod")); err == nil {
			return at, nil
		}
		if at == filepath.Dir(at) {
			return "", fmt.Errorf("find checkout: no go.mod above %s", dir)
		}
	}
}

// step tells a person how far the run is.
func step(start time.Time, what string) {
	fmt.Printf("%6.1fs  %s\n", time.Since(start).Seconds(), what)
}
