package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// row is one method of the packages, as methods.json has it.
type row struct {
	ID         string            `json:"id"`
	Package    string            `json:"package"` // e2b unless said otherwise
	Python     string            `json:"python"`  // its name there; empty where it does not exist
	JS         string            `json:"js"`
	CLI        string            `json:"cli"`
	Wire       string            `json:"wire"`       // the calls that it makes
	Absent     map[string]string `json:"absent"`     // beginning of a lane's name: why the method is not there
	CannotFail string            `json:"cannotFail"` // why there is no failing form
}

// in tells whether the row's method exists in a lane, by which name, and if not, why.
func (r row) in(l lane) (name, absent string) {
	switch {
	case r.Package != l.pkg:
		return "", "another package"
	case l.pkg == "cli":
		name = r.CLI
	case l.tool == "node":
		name = r.JS
	default:
		name = r.Python
	}
	for prefix, why := range r.Absent {
		if strings.HasPrefix(l.name, prefix) {
			return "", why
		}
	}
	if name == "" {
		return "", "not in this language"
	}
	return name, ""
}

func readRegister(path string) ([]row, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read register: %w", err)
	}
	var file struct {
		Rows []row `json:"rows"`
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&file); err != nil {
		return nil, fmt.Errorf("read register %s: %w", path, err)
	}
	seen := map[string]bool{}
	for i := range file.Rows {
		r := &file.Rows[i]
		if r.Package == "" {
			r.Package = "e2b"
		}
		if r.ID == "" || r.Wire == "" || seen[r.ID] {
			return nil, fmt.Errorf("read register %s: row %q is incomplete or there twice", path, r.ID)
		}
		seen[r.ID] = true
	}
	return file.Rows, nil
}

// result is a line of what a lane wrote: about itself, about the package's surface, or about one test.
type result struct {
	Kind    string         `json:"kind"`
	Version string         `json:"version,omitempty"`
	Engine  string         `json:"engine,omitempty"`
	Methods []string       `json:"methods,omitempty"` // kind surface
	Name    string         `json:"name,omitempty"`    // kind test, as the following
	Outcome string         `json:"outcome,omitempty"` // pass, fail or skip
	Reason  string         `json:"reason,omitempty"`
	Works   []string       `json:"works,omitempty"` // rows used as meant
	Fails   []string       `json:"fails,omitempty"` // rows used so that they fail
	Differs []difference   `json:"differs,omitempty"`
	Calls   map[string]int `json:"calls,omitempty"`
}

type difference struct {
	Row  string `json:"row"`
	Note string `json:"note"`
}

// findings is what one lane found.
type findings struct {
	lane    lane
	ran     bool
	version string
	engine  string
	surface []string
	tests   []result
}

// readResults reads what the chosen lanes wrote. A lane without a file did not run.
func readResults(dir string, chosen []lane) ([]findings, error) {
	var out []findings
	for _, l := range chosen {
		f := findings{lane: l}
		raw, err := os.ReadFile(filepath.Join(dir, l.name+".jsonl"))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("read results: %w", err)
		}
		f.ran = err == nil
		lines := bufio.NewScanner(bytes.NewReader(raw))
		lines.Buffer(nil, 4<<20)
		for lines.Scan() {
			var r result
			if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
				return nil, fmt.Errorf("read results of %s: %w", l.name, err)
			}
			switch r.Kind {
			case "lane":
				f.version, f.engine = r.Version, r.Engine
			case "surface":
				f.surface = r.Methods
			case "test":
				f.tests = append(f.tests, r)
			}
		}
		if err := lines.Err(); err != nil {
			return nil, fmt.Errorf("read results of %s: %w", l.name, err)
		}
		out = append(out, f)
	}
	return out, nil
}

func (f findings) count(outcome string) (n int) {
	for _, t := range f.tests {
		if t.Outcome == outcome {
			n++
		}
	}
	return n
}

// calls counts the calls on the package that the lane's tests made, and the different methods among them.
func (f findings) calls() (calls, methods int) {
	seen := map[string]bool{}
	for _, t := range f.tests {
		for m, n := range t.Calls {
			calls += n
			seen[m] = true
		}
	}
	return calls, len(seen)
}

// judge prints what was found and fails on every test that failed and every method that has no row or no test.
func judge(reg []row, results []findings, o options) error {
	var errs []error
	fmt.Printf("\n%-20s %-10s %-12s %6s %6s %8s %6s %8s\n", "lane", "version", "engine", "passed", "failed", "left out", "calls", "methods")
	total, passed, failed, skipped := 0, 0, 0, 0
	for _, f := range results {
		calls, methods := f.calls()
		total += calls
		passed, failed, skipped = passed+f.count("pass"), failed+f.count("fail"), skipped+f.count("skip")
		fmt.Printf("%-20s %-10s %-12s %6d %6d %8d %6d %8d\n", f.lane.name, f.version, f.engine, f.count("pass"), f.count("fail"), f.count("skip"), calls, methods)
		for _, t := range f.tests {
			if t.Outcome == "fail" {
				errs = append(errs, fmt.Errorf("%s %s: %s", f.lane.name, t.Name, t.Reason))
			}
		}
		switch {
		case f.ran && len(f.tests) == 0:
			errs = append(errs, fmt.Errorf("%s ran no test", f.lane.name))
		case f.ran && !o.quick && f.lane.pkg != "":
			errs = append(errs, gaps(reg, f)...)
		case !f.ran && f.lane.template == "":
			errs = append(errs, fmt.Errorf("%s did not run", f.lane.name))
		}
	}
	fmt.Printf("\ncalls on the packages:\n")
	for _, line := range perRelease(results) {
		fmt.Println("  " + line)
	}
	fmt.Printf("%d calls\n\n%d passed, %d failed, %d skipped\n", total, passed, failed, skipped)
	return errors.Join(errs...)
}

// perRelease says of each release how often it was called, in the order of the lanes.
func perRelease(results []findings) []string {
	var order []string
	calls, methods := map[string]int{}, map[string]map[string]bool{}
	for _, f := range results {
		if !f.ran || f.lane.pkg == "" {
			continue
		}
		language := "Python"
		if f.lane.tool == "node" || f.lane.pkg == "cli" {
			language = "JavaScript"
		}
		release := strings.TrimSpace(fmt.Sprintf("%s, %s %s", f.lane.pkg, language, f.version))
		if methods[release] == nil {
			order, methods[release] = append(order, release), map[string]bool{}
		}
		for _, t := range f.tests {
			for m, n := range t.Calls {
				calls[release] += n
				methods[release][m] = true
			}
		}
	}
	var lines []string
	for _, release := range order {
		lines = append(lines, fmt.Sprintf("%-40s %6d calls of %3d methods", release, calls[release], len(methods[release])))
	}
	return lines
}

// gaps compares a lane with the register: every public method of the package has a row, every row a method, and each was used as meant
// and so that it fails.
func gaps(reg []row, f findings) (errs []error) {
	works, fails, names := map[string]bool{}, map[string]bool{}, map[string]bool{}
	for _, t := range f.tests {
		for _, id := range t.Works {
			works[id] = true
		}
		for _, id := range t.Fails {
			fails[id] = true
		}
	}
	for _, r := range reg {
		name, absent := r.in(f.lane)
		if absent != "" {
			continue
		}
		names[name] = true
		if !slices.Contains(f.surface, name) {
			errs = append(errs, fmt.Errorf("%s: methods.json has %s, which release %s does not have", f.lane.name, name, f.version))
		}
		if !works[r.ID] {
			errs = append(errs, fmt.Errorf("%s: no test uses %s as meant", f.lane.name, name))
		}
		if !fails[r.ID] && r.CannotFail == "" {
			errs = append(errs, fmt.Errorf("%s: no test uses %s so that it fails", f.lane.name, name))
		}
	}
	for _, name := range f.surface {
		if !names[name] {
			errs = append(errs, fmt.Errorf("%s: release %s has %s, which has no row in methods.json", f.lane.name, f.version, name))
		}
	}
	return errs
}
