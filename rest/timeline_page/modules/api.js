/** What the server is asked; with the key that the page at `/` keeps, where there is one. */

export async function getJson(path) {
  const key = localStorage.getItem("braid.api-key");
  const answer = await fetch(path, { headers: key ? { authorization: `Bearer ${key}` } : {} });
  const body = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(body.error?.message ?? `the server answered ${answer.status}`);
  return body;
}

/** Saves what may need a key, which a plain link could not send. */
export async function saveJson(path, name) {
  const url = URL.createObjectURL(new Blob([JSON.stringify(await getJson(path))], { type: "application/json" }));
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  link.click();
  URL.revokeObjectURL(url);
}
