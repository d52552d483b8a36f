package main

import (
	"strings"
	"testing"
)

var (
	oneRow = row{ID: "Thing.do_it", Package: "e2b", Python: "Thing.do_it", JS: "Thing.doIt", Wire: "GET /thing"}
	pyLane = lane{name: "python-newest-sync", title: "Python sync", tool: "pytest", pkg: "e2b"}
	jsLane = lane{name: "js-newest", title: "JavaScript", tool: "node", pkg: "e2b"}
)

func pass(works, fails string) result {
	r := result{Kind: "test", Name: "file::test_x", Outcome: "pass", Works: strings.Fields(works), Fails: strings.Fields(fails)}
	return r
}

func skip(reason string) result {
	return result{Kind: "test", Name: "file::test_x", Outcome: "skip", Reason: reason, Works: []string{oneRow.ID}, Fails: []string{oneRow.ID}}
}

func TestRegisterOfThisTree(t *testing.T) {
	reg, err := readRegister("methods.json")
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range lanes {
		if l.pkg == "" {
			continue
		}
		n := 0
		for _, r := range reg {
			if _, absent := r.in(l); absent == "" {
				n++
			}
		}
		if n == 0 {
			t.Errorf("lane %s has no rows", l.name)
		}
	}
}

func TestGaps(t *testing.T) {
	noFail := oneRow
	noFail.CannotFail = "it never does"
	gone := oneRow
	gone.Absent = map[string]string{"python-": "came later"}
	for _, tt := range []struct {
		name    string
		row     row
		lane    lane
		surface string
		tests   []result
		want    string // part of the one error; empty for none
	}{
		{"complete", oneRow, pyLane, "Thing.do_it", []result{pass(oneRow.ID, oneRow.ID)}, ""},
		{"complete in two tests", oneRow, jsLane, "Thing.doIt", []result{pass(oneRow.ID, ""), pass("", oneRow.ID)}, ""},
		{"not yet counts as a test", oneRow, pyLane, "Thing.do_it", []result{skip("not yet: no route")}, ""},
		{"never used as meant", oneRow, pyLane, "Thing.do_it", []result{pass("", oneRow.ID)}, "no test uses Thing.do_it as meant"},
		{"never made to fail", oneRow, pyLane, "Thing.do_it", []result{pass(oneRow.ID, "")}, "so that it fails"},
		{"cannot fail", noFail, pyLane, "Thing.do_it", []result{pass(oneRow.ID, "")}, ""},
		{"method without a row", oneRow, pyLane, "Thing.do_it Thing.new", []result{pass(oneRow.ID, oneRow.ID)}, "has Thing.new, which has no row"},
		{"row without a method", oneRow, pyLane, "", []result{pass(oneRow.ID, oneRow.ID)}, "does not have"},
		{"known to be absent", gone, pyLane, "", nil, ""},
		{"absent but there", gone, pyLane, "Thing.do_it", nil, "has no row"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			errs := gaps([]row{tt.row}, findings{lane: tt.lane, ran: true, surface: strings.Fields(tt.surface), tests: tt.tests})
			switch {
			case tt.want == "" && len(errs) > 0:
				t.Errorf("unexpected: %v", errs)
			case tt.want != "" && (len(errs) != 1 || !strings.Contains(errs[0].Error(), tt.want)):
				t.Errorf("got %v, want one error with %q", errs, tt.want)
			}
		})
	}
}

func TestCell(t *testing.T) {
	differing := pass(oneRow.ID, oneRow.ID)
	differing.Differs = []difference{{oneRow.ID, "not so fast"}, {"Other.row", "no matter"}}
	for _, tt := range []struct {
		name  string
		lane  lane
		ran   bool
		tests []result
		want  string
	}{
		{"works", pyLane, true, []result{pass(oneRow.ID, oneRow.ID)}, "works"},
		{"works though a part is not there yet", pyLane, true, []result{pass(oneRow.ID, ""), skip("not yet: no route")}, "works"},
		{"differs", pyLane, true, []result{differing}, "differs (1)"},
		{"not yet", pyLane, true, []result{skip("not yet: no route")}, "not yet (1)"},
		{"only its failing form passed", pyLane, true, []result{pass("", oneRow.ID), skip("not yet: no route")}, "not yet (1)"},
		{"left out for another reason", pyLane, true, []result{skip("n/a: old")}, "not seen"},
		{"lane did not run", lane{pkg: "e2b", template: "big"}, false, nil, "not yet (1)"},
		{"not in the language", lane{pkg: "cli"}, true, nil, "–"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var ns notes
			if got := cell(oneRow, findings{lane: tt.lane, ran: tt.ran, tests: tt.tests}, &ns); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestRenderIsDeterministic(t *testing.T) {
	results := []findings{
		{lane: pyLane, ran: true, version: "1.2.3", tests: []result{pass(oneRow.ID, oneRow.ID)}},
		{lane: jsLane, ran: true, version: "1.2.4", tests: []result{skip("not yet: no route")}},
		{lane: lane{name: "bad-input"}, ran: true, tests: []result{{Name: "test_b.py::test_a_b[x]", Outcome: "pass"}, {Name: "test_b.py::test_a_b[y]", Outcome: "pass"}}},
	}
	page := string(render([]row{oneRow}, results))
	for _, want := range []string{
		"| method | calls | Python sync 1.2.3 | JavaScript 1.2.4 |", "| `Thing.do_it` `Thing.doIt` | GET /thing | works | not yet (1) |",
		"\n1. no route\n", "\n- a b\n",
	} {
		if strings.Count(page, want) != 1 {
			t.Errorf("want %q once in:\n%s", want, page)
		}
	}
	if again := string(render([]row{oneRow}, results)); again != page {
		t.Error("the same findings gave another page")
	}
}

func TestNodeVersions(t *testing.T) {
	if nodeFits(t.Context(), "/no/such/node") {
		t.Error("a node that is not there fits")
	}
}

func TestCallsPerRelease(t *testing.T) {
	tested := func(calls map[string]int) []result { return []result{{Kind: "test", Outcome: "pass", Calls: calls}} }
	asyncLane := lane{name: "python-newest-async", tool: "pytest", pkg: "e2b"}
	got := perRelease([]findings{
		{lane: pyLane, ran: true, version: "1.2.3", tests: tested(map[string]int{"Thing.do_it": 2, "Thing.new": 1})},
		{lane: asyncLane, ran: true, version: "1.2.3", tests: tested(map[string]int{"Thing.do_it": 4})},
		{lane: jsLane, ran: true, version: "1.2.3", tests: tested(map[string]int{"Thing.doIt": 5})},
		{lane: lane{name: "bad-input"}, ran: true, tests: tested(map[string]int{"no package": 9})},
	})
	want := []string{"e2b, Python 1.2.3 7 calls of 2 methods", "e2b, JavaScript 1.2.3 5 calls of 1 methods"}
	for i, line := range got {
		got[i] = strings.Join(strings.Fields(line), " ")
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got %q, want %q", got, want)
	}
}
