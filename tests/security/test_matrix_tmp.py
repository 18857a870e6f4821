from tests.security.conftest import credentials_of
def test_print(call, api, world, installation):
    rows=[]
    for name, site in api.app._profiles.sites.items():
        c=credentials_of(name, api, world, installation)
        for e in site.profile.endpoints:
            row={}
            for kind, s in {**c.good, **c.bad}.items():
                path=f"/{name}{e.path}"
                if "{" in path:
                    vid=api("POST","/tk/v1/keys",{"account":world.a.account,"profile":name,"type":"credit"}).json()["entry"]["id"]
                    import re; path=re.sub(r"\{\w+\}",vid,path)
                h=[] if s is None else [(b"authorization",b"Bearer "+s.encode())]
                h.append((b"content-type",b"application/json"))
                r=call(e.method,path,h,b'{"name":"n"}' if e.method in("POST","PUT") else b"")
                row[kind]=r.status
                if r.status>=500: print(r.body, kind)
            good={k:row[k] for k in c.good}; bad=sorted({(v) for k,v in row.items() if k not in c.good})
            print(name,e.method,e.path,good,bad)
            if len(bad)>1: print("     ",{k:v for k,v in row.items() if k not in c.good})
    assert 0
