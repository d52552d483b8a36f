package files

import (
	"mime/multipart"
	"net/http"
	"net/textproto"
	"strings"
	"testing"
)

func FuzzMetadata(f *testing.F) {
	f.Add("X-Metadata-Key", "value")
	f.Add("X-Metadata-", "")
	f.Add("x-metadata-UPPER~!", "tab\tand \x7f")
	f.Add("X-Metadata-"+strings.Repeat("k", 300), strings.Repeat("v", 5000))
	f.Fuzz(func(t *testing.T, name, value string) {
		h := http.Header{}
		h.Set(name, value)
		meta, err := metadataOf(h)
		total := 0
		for k, v := range meta {
			total += len(k) + len(v)
			if k == "" || k != strings.ToLower(k) || len(k) > maxXattrName-len(metadataXattr) || strings.ContainsFunc(v, func(r rune) bool { return r < ' ' || r > '~' }) {
				t.Errorf("%q: %q is accepted", k, v)
			}
		}
		if total > maxMetadata || err != nil && meta != nil {
			t.Errorf("%d bytes, %v", total, err)
		}
	})
}

func FuzzPartPath(f *testing.F) {
	f.Add(`form-data; name="file"; filename="a/b"`)
	f.Add(`form-data; name="file"; filename*=UTF-8''%e2%82%ac`)
	f.Add(`form-data; filename="../../x\"y"`)
	f.Add(`;`)
	f.Fuzz(func(t *testing.T, disposition string) {
		path, err := partPath(&multipart.Part{Header: textproto.MIMEHeader{"Content-Disposition": {disposition}}})
		if (path == "") != (err != nil) {
			t.Errorf("%q, %v", path, err)
		}
	})
}

func FuzzAcceptEncoding(f *testing.F) {
	f.Add("gzip, deflate, br;q=0.5")
	f.Add("*;q=0, identity")
	f.Add("gzip;q=NaN")
	f.Add(";;=,,")
	f.Fuzz(func(t *testing.T, header string) {
		zip, err := encoding([]string{header})
		if zip && (err != nil || !strings.Contains(strings.ToLower(header), "gzip") && !strings.Contains(header, "*")) {
			t.Errorf("compressed for %q, %v", header, err)
		}
	})
}
