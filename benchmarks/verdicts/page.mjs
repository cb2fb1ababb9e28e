import puppeteer from 'puppeteer-core'; import fs from 'fs';
const browser = await puppeteer.launch({executablePath:'/usr/bin/chromium', args:['--no-sandbox','--disable-gpu']});
for (const [w,h,scheme] of [[1280,900,'light'],[390,844,'dark']]) {
 const page = await browser.newPage(); await page.setBypassCSP(true); await page.setViewport({width:w,height:h});
 await page.emulateMediaFeatures([{name:'prefers-color-scheme', value:scheme}]);
 const errors=[], requests=[]; page.on('console',m=>errors.push(m.text())); page.on('pageerror',e=>errors.push(String(e))); page.on('request',r=>requests.push(r.url()));
 await page.goto('file://'+process.argv[2], {waitUntil:'load'});
 const nav = JSON.parse(await page.evaluate(()=>JSON.stringify(performance.getEntriesByType('navigation')[0])));
 await page.evaluate(()=>document.querySelectorAll('details').forEach(d=>d.open=true));
 const overflow = await page.evaluate(()=>document.documentElement.scrollWidth>document.documentElement.clientWidth);
 await page.addScriptTag({content: fs.readFileSync('node_modules/axe-core/axe.min.js','utf8')});
 const r = await page.evaluate(async()=>await axe.run());
 console.log(w, scheme, 'load ms', Math.round(nav.loadEventEnd), 'requests', requests.length, 'console', errors, 'overflow', overflow, 'passes', r.passes.length);
 for (const v of r.violations) console.log(' ', v.impact, v.id, v.help, v.nodes.length, v.nodes[0].html.slice(0,140));
}
await browser.close();
