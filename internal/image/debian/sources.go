package debian

import (
	"bufio"
	"cmp"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Fallback is where packages come from when the host's own apt has no Debian archive, and what a guest's apt uses:
// a mirror inside the host's network is out of a sandbox's reach.
const Fallback = "http://deb.debian.org/debian"

const fallbackSecurity = "http://deb.debian.org/debian-security"

// DefaultSuite is built where the host is no Debian.
const DefaultSuite = "bookworm"

// archive is one line of apt's sources.
type archive struct {
	uri        string
	suite      string
	components []string
	signedBy   string
}

func (a archive) line() string {
	options := ""
	if a.signedBy != "" {
		options = "[signed-by=" + a.signedBy + "] "
	}
	return "deb " + options + a.uri + " " + a.suite + " " + strings.Join(a.components, " ")
}

// hostArchives finds out which Debian the host runs and from where its apt gets it. Root is "/" but in tests.
func hostArchives(root string) (suite string, archives []archive) {
	release := readKeys(filepath.Join(root, "etc/os-release"))
	if release["ID"] != "debian" || release["VERSION_CODENAME"] == "" {
		return DefaultSuite, fallback(DefaultSuite)
	}
	suite = release["VERSION_CODENAME"]
	var all []archive
	lists, _ := filepath.Glob(filepath.Join(root, "etc/apt/sources.list.d/*"))
	slices.Sort(lists)
	for _, name := range append([]string{filepath.Join(root, "etc/apt/sources.list")}, lists...) {
		b, err := os.ReadFile(name)
		switch {
		case err != nil:
		case strings.HasSuffix(name, ".list"):
			all = append(all, parseList(string(b))...)
		case strings.HasSuffix(name, ".sources"):
			all = append(all, parseSources(string(b))...)
		}
	}
	for _, a := range all {
		// Other archives of the host, those of vendors, are no part of a base.
		own := slices.Contains([]string{suite, suite + "-updates", suite + "-security"}, a.suite)
		base := filepath.Base(strings.TrimRight(a.uri, "/"))
		if own && slices.Contains(a.components, "main") && (base == "debian" || base == "debian-security") {
			a.components = []string{"main"}
			archives = append(archives, a)
		}
	}
	if !slices.ContainsFunc(archives, func(a archive) bool { return a.suite == suite }) {
		return suite, fallback(suite)
	}
	return suite, archives
}

func fallback(suite string) []archive {
	main := []string{"main"}
	return []archive{{uri: Fallback, suite: suite, components: main}, {uri: fallbackSecurity, suite: suite + "-security", components: main}}
}

// guestSources is what the guest's own apt is told.
func guestSources(suite string) string {
	out := ""
	for _, a := range append(fallback(suite), archive{uri: Fallback, suite: suite + "-updates", components: []string{"main"}}) {
		out += a.line() + "\n"
	}
	return out
}

// parseList reads the form of one line per archive: deb [options] URI SUITE COMPONENT...
func parseList(text string) []archive {
	var out []archive
	for l := range strings.Lines(text) {
		l, _, _ = strings.Cut(l, "#")
		rest, ok := strings.CutPrefix(strings.TrimSpace(l), "deb ")
		if !ok {
			continue
		}
		a := archive{}
		rest = strings.TrimSpace(rest)
		if strings.HasPrefix(rest, "[") {
			options, after, ok := strings.Cut(rest[1:], "]")
			if !ok {
				continue
			}
			for option := range strings.FieldsSeq(options) {
				if value, ok := strings.CutPrefix(option, "signed-by="); ok {
					a.signedBy = value
				}
			}
			rest = after
		}
		if f := strings.Fields(rest); len(f) >= 3 {
			a.uri, a.suite, a.components = f[0], f[1], f[2:]
			out = append(out, a)
		}
	}
	return out
}

// parseSources reads the form of paragraphs (deb822).
func parseSources(text string) []archive {
	var out []archive
	for paragraph := range strings.SplitSeq(text, "\n\n") {
		keys := map[string]string{}
		last := ""
		for in := bufio.NewScanner(strings.NewReader(paragraph)); in.Scan(); {
			l := in.Text()
			switch {
			case strings.HasPrefix(l, "#"):
			case strings.HasPrefix(l, " ") || strings.HasPrefix(l, "\t"):
				keys[last] += " " + strings.TrimSpace(l)
			default:
				key, value, _ := strings.Cut(l, ":")
				last = strings.ToLower(key)
				keys[last] = strings.TrimSpace(value)
			}
		}
		if !slices.Contains(strings.Fields(keys["types"]), "deb") || strings.EqualFold(keys["enabled"], "no") {
			continue
		}
		signedBy := keys["signed-by"]
		if !strings.HasPrefix(signedBy, "/") {
			signedBy = "" // a key in place: apt's own Debian keys do as well
		}
		for uri := range strings.FieldsSeq(keys["uris"]) {
			for suite := range strings.FieldsSeq(keys["suites"]) {
				out = append(out, archive{uri: uri, suite: suite, components: strings.Fields(keys["components"]), signedBy: signedBy})
			}
		}
	}
	return out
}

// readKeys reads KEY=value lines.
func readKeys(name string) map[string]string {
	out := map[string]string{}
	b, err := os.ReadFile(name)
	if err != nil {
		return out
	}
	for l := range strings.Lines(string(b)) {
		key, value, _ := strings.Cut(strings.TrimSpace(l), "=")
		out[key] = strings.Trim(value, `"'`)
	}
	return out
}

// proxies gives the options by which the host's apt reaches its archives through a proxy.
func proxies(dump string) []string {
	var out []string
	for l := range strings.Lines(dump) {
		l = strings.TrimSpace(l)
		key, value, _ := strings.Cut(l, " ")
		if strings.HasPrefix(key, "Acquire::") && strings.Contains(strings.ToLower(key), "proxy") && cmp.Or(strings.Trim(value, `";`), "") != "" {
			out = append(out, l)
		}
	}
	return out
}
