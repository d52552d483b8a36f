package image

import (
	"slices"
	"strings"
	"testing"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/image/oci"
	"github.com/tartarus-sandbox/tartarus/internal/image/oci/ocitest"
)

// A template says who signed its image, and by what name that was asked for: the same image built again is not the same provenance.
func TestProvenance(t *testing.T) {
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	r, k := ocitest.New(t), ocitest.NewKey(t)
	key, err := oci.ParseKey(k.PEM())
	if err != nil {
		t.Fatal(err)
	}
	s := open(t, t.TempDir(), standIns)
	digest := r.Push("app:v1", "hello")
	spec := Spec{Name: "app", OCI: r.Host + "/app:v1", Keys: []oci.Key{key}}

	demanded := spec
	demanded.Signed = true
	if _, err := s.Build(t.Context(), demanded, nil); !tartarus.Is(err, tartarus.Denied) || !strings.Contains(err.Error(), "no signature of it") {
		t.Fatalf("not signed, and demanded: %v", err)
	}
	unsigned, err := s.Build(t.Context(), spec, nil)
	if err != nil || len(unsigned.SignedBy) > 0 {
		t.Fatalf("not signed: %+v, %v", unsigned, err)
	}

	r.Store("app", digest, k.Sign(ocitest.Text(digest)))
	signed, err := s.Build(t.Context(), demanded, nil)
	if err != nil || !slices.Equal(signed.SignedBy, []string{key.ID}) {
		t.Fatalf("signed: %+v, %v", signed, err)
	}
	if signed.Build == unsigned.Build || signed.Digest != unsigned.Digest || signed.ID != unsigned.ID {
		t.Errorf("it should be a new version of the same template with the same image: %+v and %+v", unsigned, signed)
	}
	again, err := s.Build(t.Context(), spec, nil)
	if err != nil || again.Build != signed.Build {
		t.Errorf("built once more for nothing: %+v, %v", again, err)
	}
	spec.OCI = r.Host + "/app@" + digest.String()
	pinned, err := s.Build(t.Context(), spec, nil)
	if err != nil || pinned.Recipe != "oci:"+spec.OCI || !slices.Equal(pinned.SignedBy, []string{key.ID}) {
		t.Errorf("by its digest: %+v, %v", pinned, err)
	}
	spec.Keys = nil
	if forgotten, err := s.Build(t.Context(), spec, nil); err != nil || len(forgotten.SignedBy) > 0 {
		t.Errorf("built without looking for signatures: %+v, %v", forgotten, err)
	}
	for name, bad := range map[string]Spec{"no key": {Name: "x", OCI: spec.OCI, Signed: true}, "no registry": {Name: "x", Dir: t.TempDir(), Keys: []oci.Key{key}, Signed: true}} {
		if _, err := s.Build(t.Context(), bad, nil); !tartarus.Is(err, tartarus.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
