package image

import (
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/tartarus-sandbox/tartarus"
)

// DefaultTag is the tag of a reference that names none.
const DefaultTag = "default"

// Defaults of a template's resources: what the SDKs' own service gives, and enough for a Python with its usual
// packages. The disk is what may be written on top of the image.
const (
	DefaultVCPU     = 2
	DefaultMemoryMB = 1024
	DefaultDiskMB   = 4096
)

// Template is one version of a template, as the store records it. All tags of one name share an ID.
type Template struct {
	ID        string            `json:"id"`    // tartarus.NewTemplateID, the same for all versions
	Build     string            `json:"build"` // tartarus.NewID-like, of this version alone
	Name      string            `json:"name"`
	Tags      []string          `json:"tags"`
	Digest    string            `json:"digest"` // sha256:HEX of the EROFS file
	RootFS    string            `json:"rootfs"` // its path: absolute in memory, relative to the store on disk
	Size      int64             `json:"size"`   // its bytes
	Env       map[string]string `json:"env,omitempty"`
	User      string            `json:"user"`
	WorkDir   string            `json:"workdir"`
	Cmd       []string          `json:"cmd,omitempty"` // entry point and command of the container image, for information
	StartCmd  string            `json:"startCmd,omitempty"`
	ReadyCmd  string            `json:"readyCmd,omitempty"`
	VCPU      int               `json:"vcpu"`
	MemoryMB  int64             `json:"memoryMB"`
	DiskMB    int64             `json:"diskMB"`
	CreatedAt time.Time         `json:"createdAt"`
	// AgentDigest is the SHA-256 of the guest agent in the image, in hexadecimal digits.
	AgentDigest string `json:"agentDigest"`
	// Recipe says what the image was made from, for people: "tiny", "base", "oci:debian:12".
	Recipe string `json:"recipe"`
	// SignedBy are the ids of the keys by which the container image was signed when it was built from it, of those that were asked for.
	SignedBy []string `json:"signedBy,omitempty"`
	// Key is the SHA-256 over all that went into the image but the agent; the same key needs no second build.
	Key string `json:"key,omitempty"`
	// DroppedXattrs counts extended attributes (file capabilities, mostly) that are not in the image.
	DroppedXattrs int `json:"droppedXattrs,omitempty"`
}

// Resources are the template's limits in the words of a sandbox.
func (t *Template) Resources() tartarus.Resources {
	return tartarus.Resources{VCPU: t.VCPU, MemoryMB: t.MemoryMB, DiskMB: t.DiskMB}
}

var (
	nameForm = regexp.MustCompile(`^(?:[a-z0-9][a-z0-9_-]{0,127}/)?[a-z0-9][a-z0-9_-]{0,127}$`)
	tagForm  = regexp.MustCompile(`^[a-z0-9_.-]{1,128}$`)
)

// ValidName reports whether s can be a template's name: [a-z0-9-_]+ with an optional namespace before a slash.
func ValidName(s string) bool { return nameForm.MatchString(s) }

// ValidTag reports whether s can be a tag: [a-z0-9-_.]+, but no path.
func ValidTag(s string) bool { return tagForm.MatchString(s) && strings.Trim(s, ".") != "" }

// SplitRef takes NAME, NS/NAME, ID, or one of these with :TAG apart.
func SplitRef(ref string) (name, tag string, err error) {
	name, tag, tagged := strings.Cut(ref, ":")
	if !tagged {
		tag = DefaultTag
	}
	if !ValidName(name) || !ValidTag(tag) {
		return "", "", tartarus.Errorf(tartarus.Invalid, "%.80q is no template reference: [namespace/]name[:tag] of a-z, 0-9, - and _", ref)
	}
	return name, tag, nil
}

// find picks the version that a reference means. A tag-less reference to a template whose versions do not have
// the default tag means the newest.
func find(all []Template, ref string) (int, error) {
	name, tag, err := SplitRef(ref)
	if err != nil {
		return -1, err
	}
	newest := -1
	for i := range all {
		t := &all[i]
		if t.Name != name && t.ID != name || len(t.Tags) == 0 {
			continue
		}
		if slices.Contains(t.Tags, tag) {
			return i, nil
		}
		if newest < 0 || t.CreatedAt.After(all[newest].CreatedAt) {
			newest = i
		}
	}
	if newest >= 0 && !strings.Contains(ref, ":") {
		return newest, nil
	}
	return -1, tartarus.Errorf(tartarus.NotFound, "template %q not found", ref)
}
